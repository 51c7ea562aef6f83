"""One request from its arrival to its last byte: ask the fabric, call the worker it names, pass the answer on untouched.

The handler's task does the work of its call from end to end. Until the first byte goes to the client everything can be
tried again elsewhere, and the fabric says where; a response's head is therefore sent with its first byte, and answers that
are not streamed are held until they are whole. After the first byte an attempt that breaks ends the stream with an error
event: the client is told, never left hanging.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from aiohttp import web
from multidict import CIMultiDict

from amf.core.decisions import Dispatch, Refuse
from amf.core.types import CallKind
from amf.engines.engine import EngineBusy, EngineError, EngineRequest, Upstream
from amf.engines.headers import CREDENTIALS
from amf.gateway.driver import Driver
from amf.gateway.fleet import Fleet
from amf.gateway.intake import Accepted, Inbound, Intake
from amf.gateway.metrics import Metrics
from amf.gateway.problem import Problem, refusal
from amf.gateway.ticket import AttemptAborted, Ticket
from amf.gateway.usage import StreamTail, Usage, usage_of

_NOT_FORWARDED = frozenset({"content-encoding", "priority"})  # aiohttp has decoded the body; priority is the fabric's
_NOT_RETURNED = frozenset({"content-length", "date", "server", "x-request-id", "set-cookie"})
_BYTES_PER_TOKEN = 4
_MAX_LINE_BYTES = 1024 * 1024  # of a stream; longer ones pass in pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardLimits:
    """Real seconds and bytes. Larger answers than `max_buffered_bytes` are passed on before they are whole."""

    wait_s: float = 600.0
    upload_s: float = 300.0
    max_buffered_bytes: int = 32 * 1024 * 1024


class _Exchange:
    """What the steps of one call share."""

    __slots__ = ("accepted", "busy", "dispatch", "in_event", "overhead_s", "request", "response", "started_s", "ticket")

    def __init__(self, request: web.Request, accepted: Accepted, ticket: Ticket, started_s: float) -> None:
        self.request = request
        self.accepted = accepted
        self.ticket = ticket
        self.started_s = started_s
        self.overhead_s: float | None = None  # real, from the last byte received to the first dispatch, waiting apart
        self.dispatch: Dispatch | None = None
        self.response: web.StreamResponse | None = None  # once its head is on the way
        self.busy = False  # the last attempt found the engine full
        self.in_event = False  # the client has the first lines of an event whose end is still to come


class Forwarder:
    def __init__(self, intake: Intake, driver: Driver, fleet: Fleet, metrics: Metrics, limits: ForwardLimits) -> None:
        self._intake = intake
        self._driver = driver
        self._fleet = fleet
        self._metrics = metrics
        self._limits = limits

    async def serve(self, request: web.Request, inbound: Inbound) -> web.StreamResponse:
        """Raises Problem for what ends before it is a call; answers every call."""
        raw = await (request.read() if request.content.is_eof() else self._receive(request))
        started_s = time.perf_counter()
        accepted = await self._intake.accept(inbound, raw)
        for decision in accepted.decisions:
            self._driver.decide(accepted.call.run_id, decision)
        try:
            with (
                self._driver.call(accepted.call, self._limits.wait_s) as ticket,
                self._within_timeout(accepted, ticket),
            ):
                exchange = _Exchange(request, accepted, ticket, started_s)
                return await self._run(exchange)
        except Problem as problem:
            return problem.response(self._told(accepted))
        except ConnectionError:  # the client went away in the middle of a write
            self._metrics.disconnects.inc()
            return web.Response(status=499)

    @contextmanager
    def _within_timeout(self, accepted: Accepted, ticket: Ticket) -> Iterator[None]:
        """Ends the call if its answer has not begun when the request's own timeout is over."""
        slo, clock = accepted.slo, self._driver.clock
        if slo.timeout_at_s is None:
            yield
            return
        message = f"The {slo.timeout_source} of this request passed before an answer began."
        left_s = clock.real_s(slo.timeout_at_s - clock.now_s())
        problem = refusal("deadline_exceeded", message)
        timer = asyncio.get_running_loop().call_later(max(0.0, left_s), ticket.overdue, problem)
        try:
            yield
        finally:
            timer.cancel()

    async def _receive(self, request: web.Request) -> bytes:
        """The rest of a body that is still on its way. Raises Problem (408) if it takes too long."""
        try:
            async with asyncio.timeout(self._limits.upload_s):
                return await request.read()
        except TimeoutError:
            message = (
                f"The body did not arrive within {self._limits.upload_s:g} s: send it again, or in smaller pieces."
            )
            raise Problem(408, "upload_timeout", message, retry=True) from None

    async def _run(self, exchange: _Exchange) -> web.StreamResponse:
        ticket = exchange.ticket
        while True:
            order = await ticket.next()
            if isinstance(order, Refuse):
                after_s = None if order.retry_after_s is None else self._driver.clock.real_s(order.retry_after_s)
                ticket.ended = True
                code = "overloaded" if exchange.busy and order.code == "upstream_failed" else order.code
                return refusal(code, order.message, after_s).response(self._told(exchange.accepted))
            exchange.dispatch = order
            if order.slack_s is not None:
                accepted = exchange.accepted
                slack_s = self._driver.clock.real_s(order.slack_s)
                self._metrics.slo.sent(accepted.slo.graph, accepted.call.hop, slack_s)
            if exchange.overhead_s is None:
                exchange.overhead_s = time.perf_counter() - exchange.started_s - ticket.waited_s
                self._metrics.overhead_s.observe(exchange.overhead_s)
                self._metrics.queue_s.observe(ticket.waited_s)
            response = await self._attempt(exchange, order)
            if response is not None:
                return response

    async def _attempt(self, exchange: _Exchange, order: Dispatch) -> web.StreamResponse | None:
        """The answer, or None if the fabric is to say what comes next."""
        ticket, accepted = exchange.ticket, exchange.accepted
        try:
            with self._driver.attempt(ticket, order):
                engine = self._fleet.engine(order.worker)
                if engine is None:
                    raise EngineError("the worker is no longer known")
                request = self._engine_request(exchange, order)
                if exchange.accepted.prompt_bytes:  # a prompt that is known by its text
                    request = self._fleet.follow(order.worker, request, exchange.accepted.call.prefix)
                async with engine.generate(request) as upstream:
                    if accepted.stream and upstream.status == 200 and _is_sse(upstream):
                        response: web.StreamResponse | None = await self._relay(exchange, upstream)
                    else:
                        response = await self._collect(exchange, upstream)
            self._fleet.call_succeeded(order.worker)
            return response
        except EngineError as error:
            if ticket.ended and exchange.response is not None:  # it broke after its end mark: the answer is whole
                await exchange.response.write_eof()
                return exchange.response
            self._metrics.attempt_failures.labels(order.worker).inc()
            self._driver.failed(ticket, str(error), retryable=True)
            exchange.busy = isinstance(error, EngineBusy)
            if not exchange.busy:
                self._fleet.call_failed(order.worker, str(error))
            if ticket.streamed:
                return await self._break_off(exchange, refusal("upstream_failed", f"The answer broke off: {error}."))
            return None
        except AttemptAborted as aborted:
            if ticket.streamed:
                ticket.ended = True
                problem = ticket.problem or _problem_of(ticket.refused, str(aborted))
                return await self._break_off(exchange, problem)
            return None

    def _engine_request(self, exchange: _Exchange, order: Dispatch) -> EngineRequest:
        accepted = exchange.accepted
        dropped = _NOT_FORWARDED | CREDENTIALS if accepted.call.tenant else _NOT_FORWARDED
        headers: Mapping[str, str] = exchange.request.headers
        if any(name in headers for name in dropped):
            headers = CIMultiDict([item for item in headers.items() if item[0].lower() not in dropped])
        return EngineRequest(
            request_id=_request_id(accepted, order),
            path=exchange.request.path,
            body=accepted.body,
            headers=headers,
            urgency_s=self._driver.clock.real_s(order.urgency_s),
            session_id=accepted.session_id,
        )

    async def _relay(self, exchange: _Exchange, upstream: Upstream) -> web.StreamResponse:
        """A stream: bytes pass as they come. The fabric hears of the end before the client, whose next hop may be quick."""
        tail = StreamTail()
        response: web.StreamResponse | None = None
        held = b""
        async for chunk in upstream.chunks():
            if response is None:
                response = await self._begin(exchange, upstream)
            tail.feed(chunk)
            if not exchange.ticket.ended and tail.complete():
                self._finish(exchange, tail.usage(), estimated_output=max(0, tail.data_lines - 2))
            if held or not chunk.endswith(b"\n"):  # half a line stays, so that an error can still follow whole ones
                held += chunk
                end = len(held) if len(held) > _MAX_LINE_BYTES else held.rfind(b"\n") + 1
                chunk, held = held[:end], held[end:]
            if chunk:
                exchange.in_event = not chunk.endswith(b"\n\n")
                await response.write(chunk)
        if response is None or not exchange.ticket.ended:
            raise EngineError("the stream ended before its end mark")
        if held:
            await response.write(held)
        await response.write_eof()
        return response

    async def _collect(self, exchange: _Exchange, upstream: Upstream) -> web.StreamResponse | None:
        """An answer in one piece, held until it is whole and known to be an answer."""
        status = upstream.status
        self._check_status(exchange, status)
        parts: list[bytes] = []
        size = 0
        async for chunk in upstream.chunks():
            parts.append(chunk)
            size += len(chunk)
            if size > self._limits.max_buffered_bytes:
                return await self._pass_on(exchange, upstream, b"".join(parts))
        body = b"".join(parts)
        if status >= 400:
            self._driver.failed(exchange.ticket, f"the engine answered with status {status}", retryable=False)
        else:
            usage = None if "content-encoding" in upstream.headers else usage_of(body)
            self._finish(exchange, usage, estimated_output=len(body) // _BYTES_PER_TOKEN)
        return web.Response(status=status, body=body, headers=self._headers(exchange, upstream))

    def _check_status(self, exchange: _Exchange, status: int) -> None:
        """Raises EngineError for a status that is the worker's doing, not the client's."""
        if status in (429, 503):
            raise EngineBusy(f"the engine is busy (status {status})")
        tenant, worker = exchange.accepted.call.tenant, exchange.ticket.worker
        login_refused = status in (401, 403) and (tenant or self._fleet.logs_in(worker))
        if status >= 500 or 300 <= status < 400 or login_refused:
            raise EngineError(f"the engine answered with status {status}")

    async def _pass_on(self, exchange: _Exchange, upstream: Upstream, begun: bytes) -> web.StreamResponse:
        """The rest of an answer too large to hold; from here on it cannot be tried again."""
        response = await self._begin(exchange, upstream)
        await response.write(begun)
        async for chunk in upstream.chunks():
            await response.write(chunk)
        self._finish(exchange, None, estimated_output=0)
        await response.write_eof()
        return response

    async def _begin(self, exchange: _Exchange, upstream: Upstream) -> web.StreamResponse:
        """The first byte has come: tell the fabric, send the head."""
        self._driver.first_token(exchange.ticket)
        exchange.ticket.check()
        response = web.StreamResponse(status=upstream.status, headers=self._headers(exchange, upstream))
        await response.prepare(exchange.request)
        exchange.response = response
        exchange.ticket.streamed = True
        return response

    async def _break_off(self, exchange: _Exchange, problem: Problem) -> web.StreamResponse:
        response = exchange.response
        assert response is not None
        if exchange.accepted.stream:
            await response.write(b"\n" + problem.sse() if exchange.in_event else problem.sse())
            await response.write_eof()
        else:
            assert exchange.request.transport is not None
            exchange.request.transport.abort()
        return response

    def _finish(self, exchange: _Exchange, usage: Usage | None, *, estimated_output: int) -> None:
        accepted = exchange.accepted
        call = accepted.call
        if usage is None:
            output = estimated_output if call.kind is CallKind.GENERATE else 0
            usage = Usage(prompt_tokens=call.prompt_tokens, output_tokens=output, cached_tokens=None)
        elif accepted.prompt_bytes:
            accepted.pool.bytes_per_token.learn(accepted.prompt_bytes, usage.prompt_tokens)
        self._metrics.answered(call.pool, usage.prompt_tokens, usage.output_tokens, usage.cached_tokens)
        self._driver.finished(
            exchange.ticket,
            prompt_tokens=usage.prompt_tokens,
            output_tokens=usage.output_tokens,
            cached_tokens=usage.cached_tokens,
        )
        if exchange.dispatch is not None and accepted.prompt_bytes:
            worker, request_id = exchange.dispatch.worker, _request_id(accepted, exchange.dispatch)
            self._fleet.call_read(worker, request_id, usage.prompt_tokens)

    def _headers(self, exchange: _Exchange, upstream: Upstream) -> dict[str, str]:
        order, ticket, clock = exchange.dispatch, exchange.ticket, self._driver.clock
        assert order is not None
        headers = {k: v for k, v in upstream.headers.items() if k.lower() not in _NOT_RETURNED and v.isprintable()}
        headers.update(self._told(exchange.accepted))
        headers["x-amf-worker"] = order.worker
        headers["x-amf-warm-tokens"] = str(order.hit_tokens)
        if order.budget_s is not None:
            headers["x-amf-budget-ms"] = f"{1000 * clock.real_s(order.budget_s):.1f}"
        if order.slack_s is not None:
            headers["x-amf-slack-ms"] = f"{1000 * clock.real_s(order.slack_s):.1f}"
        headers["x-amf-queue-ms"] = f"{1000 * ticket.waited_s:.3f}"
        headers["x-amf-overhead-ms"] = f"{1000 * (exchange.overhead_s or 0.0):.3f}"
        return headers

    def _told(self, accepted: Accepted) -> dict[str, str]:
        """What every answer to an accepted call says, refusals too."""
        call, slo, clock = accepted.call, accepted.slo, self._driver.clock
        headers = {
            "x-request-id": call.call_id,
            "x-amf-run-id": accepted.public_run_id,
            "x-amf-hop-id": accepted.hop_id,
            "x-amf-identity-source": call.identity,
            "x-amf-slo-class": call.slo_class.value,
        }
        if slo.deadline_s is not None:
            headers["x-amf-deadline-source"] = slo.source
            headers["x-amf-remaining-ms"] = f"{1000 * clock.real_s(slo.deadline_s - clock.now_s()):.1f}"
        return headers


def _problem_of(refused: Refuse | None, reason: str) -> Problem:
    """Why an answer broke off that the fabric took back."""
    if refused is not None:
        return refusal(refused.code, refused.message)
    return refusal("upstream_failed", f"The answer was stopped: {reason}.")


def _is_sse(upstream: Upstream) -> bool:
    headers: Mapping[str, str] = upstream.headers
    return headers.get("content-type", "").lower().startswith("text/event-stream")


def _request_id(accepted: Accepted, order: Dispatch) -> str:
    """What an engine knows an attempt by."""
    call_id = accepted.call.call_id
    return call_id if order.attempt == 1 else f"{call_id}-{order.attempt}"

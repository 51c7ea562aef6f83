"""A running gateway: does it answer, are its workers up, and do the headers that it lives by pass both ways?

Two calls need no engine: a model that nobody serves is asked for with a header that cannot be right, and the error says
whether the header arrived. What an answer carries takes one call of one token; which session headers pass, one each (probe).
"""

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import aiohttp
import msgspec

from amf.doctor.clock import clock
from amf.doctor.findings import Finding, fail, ok, skip, warn
from amf.doctor.patient import ANSWER_S, Reply, ask
from amf.engines.engine import EngineError
from amf.workers.listing import GatewayError, list_workers, login

_NO_MODEL = "amf-doctor-no-such-model"
_ANSWERED = ("x-request-id", "x-amf-run-id", "x-amf-hop-id", "x-amf-identity-source", "x-amf-worker")
_PASS = "let the proxy before the gateway pass headers that begin with x-amf-"
# A header, the rung of the ladder that reads it (docs/wire.md), and what commonly drops it.
_SESSIONS = (
    ("x-session-id", "x-session-id", "let the proxy before the gateway pass x-session-id"),
    ("session_id", "session-id", "nginx drops names with _: underscores_in_headers on;"),
    ("baggage", "baggage", "let the proxy before the gateway pass the W3C header baggage"),
    ("traceparent", "traceparent", "let the proxy before the gateway pass traceparent as the client sent it"),
)


class Gateway:
    def __init__(self, session: aiohttp.ClientSession, url: str, api_key: str | None) -> None:
        self._session = session
        self._url = url
        self._api_key = api_key

    async def examine(self, *, probe: bool) -> list[Finding]:
        try:
            health = await ask(self._session, "GET", self._url + "/health")
        except EngineError as error:
            fix = "start `amf serve`, or correct --gateway"
            return [fail("reachable", f"{self._url}: {str(error).replace('the engine', 'the gateway')}", fix)]
        try:
            workers = await list_workers(self._url, self._api_key)
        except GatewayError as error:
            return [fail("reachable", str(error), "correct --gateway, or --api-key")]
        found = [ok("reachable", f"{self._url} answers as a gateway"), *_states(workers), clock(health)]
        models = [each["pool"] for each in workers if each.get("status") == "up" and each.get("pool")]
        try:
            return found + [finding async for finding in self._headers(models[0] if models else None, probe)]
        except EngineError as error:
            return [*found, fail("calls", str(error), "look into the gateway's log")]

    async def _headers(self, model: str | None, probe: bool) -> AsyncIterator[Finding]:
        yield await self._headers_in()
        if model is None:
            yield skip("headers of answers", "no worker is up, so no call can be answered")
            return
        yield await self._headers_out(model)
        if not probe:
            yield skip("session headers", "not asked: each takes a call (--probe)")
            return
        for header, source, fix in _SESSIONS:
            yield await self._session_header(model, header, source, fix)

    async def _headers_in(self) -> Finding:
        """A branch that is none is refused before the model is looked up."""
        reply = await self._chat(_NO_MODEL, {"x-amf-branch": "none"})
        code = _code(reply)
        if code == "invalid_branch":
            return ok("x-amf-* to the gateway", "arrive")
        if code == "model_not_found":
            return fail("x-amf-* to the gateway", "do not arrive: something strips them on the way", _PASS)
        return skip("x-amf-* to the gateway", f"no telling: the answer was {reply.status} {code}".rstrip())

    async def _headers_out(self, model: str) -> Finding:
        run = f"amf-doctor-{uuid4().hex}"
        reply = await self._chat(model, {"x-amf-run-id": run, "x-amf-final": "true"})
        if reply.status != 200:
            return skip(
                "headers of answers", f"no telling: a call to {model} got {reply.status} {_code(reply)}".rstrip()
            )
        missing = [name for name in _ANSWERED if name not in reply.headers]
        if missing:
            seen = f"{', '.join(missing)} did not come back: something strips them on the way"
            return fail("headers of answers", seen, _PASS + " in answers too")
        if reply.headers["x-amf-run-id"] != run:
            return fail("headers of answers", "x-amf-run-id came back as another than was sent", _PASS)
        return ok("headers of answers", "x-amf-* come back, x-amf-run-id as it was sent")

    async def _session_header(self, model: str, header: str, source: str, fix: str) -> Finding:
        reply = await self._chat(model, {header: _session_value(header)})
        if reply.status != 200:
            return skip(header, f"no telling: a call got status {reply.status}")
        if reply.headers.get("x-amf-identity-source") == source:
            return ok(header, "arrives, and names the run")
        seen = f"does not arrive, or something adds a header that wins over it: {reply.headers.get('x-amf-identity-source')}"
        return warn(header, seen, fix)

    async def _chat(self, model: str, headers: dict[str, str]) -> Reply:
        """A call of one token. Raises EngineError."""
        body = {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": f"amf doctor {uuid4().hex}"}]}
        sent = {"Content-Type": "application/json", **login(self._api_key), **headers}
        url = self._url + "/v1/chat/completions"
        return await ask(self._session, "POST", url, ANSWER_S, data=msgspec.json.encode(body), headers=sent)


def _session_value(header: str) -> str:
    ours = uuid4().hex
    return {"baggage": f"session.id={ours}", "traceparent": f"00-{ours}-{ours[:16]}-01"}.get(header, ours)


def _states(workers: list[dict[str, Any]]) -> list[Finding]:
    if not workers:
        return [warn("workers", "none", "POST /amf/v1/workers, or start `amf serve` with --worker or -c")]
    down = [
        f"{each['name']} {each.get('status')} ({each.get('reason')})" for each in workers if each.get("status") != "up"
    ]
    if not down:
        return [ok("workers", f"{len(workers)} of {len(workers)} up")]
    fix = "see the reason; `amf doctor --worker URL` looks closer"
    return [(fail if len(down) == len(workers) else warn)("workers", f"not up: {'; '.join(down)}", fix)]


def _code(reply: Reply) -> str:
    answer = reply.json()
    error = answer.get("error") if isinstance(answer, dict) else None
    return str(error.get("code") or "") if isinstance(error, dict) else ""

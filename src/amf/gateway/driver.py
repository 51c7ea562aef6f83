"""The asyncio shell around the fabric: it stamps time on what happens, hands it to `Fabric.handle`, and performs the answer.

One inbox: an event that comes while another is handled waits its turn, so the fabric is never re-entered and time never
runs backwards. Performing is quick and never awaits: a dispatch wakes the handler that waits for it, a cancel interrupts
one, a wake-up is a loop timer.

The fabric failing is not the user's failure. If `handle` raises, the tail of the journal is logged and every call that
waits is served by least-loaded over the attempts that this driver knows to be running.
"""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from amf.core.decisions import Admit, Because, Cancel, Decision, Dispatch, Hold, Refuse, WakeAt
from amf.core.events import (
    BranchDecided,
    CallArrived,
    CallCancelled,
    CallFailed,
    CallFinished,
    Event,
    FirstToken,
    PipelineClosed,
    Woke,
    WorkerDraining,
    WorkerJoined,
    WorkerLost,
)
from amf.core.types import Call
from amf.gateway.branches import GroupDecision
from amf.gateway.clock import Clock
from amf.gateway.explain import Explained
from amf.gateway.journal import JournalWriter
from amf.gateway.metrics import Metrics
from amf.gateway.problem import BRANCH_CANCELLED, Problem
from amf.gateway.record import Ended
from amf.gateway.ticket import Ticket

log = logging.getLogger("amf.driver")

_MIN_SLEEP_S = 0.0005
_JOURNAL_TAIL = 20
_FALLBACK_ATTEMPTS = 3


class Machine(Protocol):
    """What the driver needs of `amf.core.fabric.Fabric`."""

    def handle(self, event: Event) -> list[Decision]: ...


class Driver:
    def __init__(
        self,
        fabric: Machine,
        clock: Clock,
        metrics: Metrics,
        explained: Explained,
        journal: JournalWriter | None = None,
        listeners: Sequence[Callable[[Ended], None]] = (),
    ) -> None:
        """`listeners` hear of every call that has ended."""
        self.clock = clock
        self.in_flight: Counter[str] = Counter()  # running attempts by worker
        self._fabric = fabric
        self._metrics = metrics
        self._explained = explained
        self._journal = journal
        self._listeners = listeners
        self._tickets: dict[str, Ticket] = {}
        self._open_calls: Counter[str] = Counter()  # by run
        self._closing: set[str] = set()  # runs to close when their last open call ends
        self._up: dict[str, str] = {}  # worker -> pool, as told to the fabric
        self._inbox: deque[Event] = deque()
        self._handling = False
        self._last_s = 0.0
        self._wake: tuple[float, asyncio.TimerHandle] | None = None
        self._tail: deque[Event] = deque(maxlen=_JOURNAL_TAIL)

    # --- what happens -------------------------------------------------------------------------------------------------

    def submit(self, kind: type[Event], **fields: Any) -> None:
        """Something happened, now. Every event of the gateway passes here."""
        self._last_s = max(self._last_s, self.clock.now_s())
        self._inbox.append(kind(at_s=self._last_s, **fields))
        if self._handling:
            return
        self._handling = True
        try:
            while self._inbox:
                self._handle(self._inbox.popleft())
        finally:
            self._handling = False

    @contextmanager
    def call(self, call: Call, wait_limit_s: float) -> Iterator[Ticket]:
        """The life of one call: it arrives on entering. Leaving by a cancelled task or an error tells the fabric so."""
        ticket = Ticket(call, wait_limit_s)
        self._tickets[call.call_id] = ticket
        self._open_calls[call.run_id] += 1
        given_up = False
        try:
            self.submit(CallArrived, call=call)
            ticket.arrived_s = self._last_s
            yield ticket
        except BaseException as error:
            given_up = not isinstance(error, Problem)
            self.submit(CallCancelled, call_id=call.call_id)
            raise
        finally:
            del self._tickets[call.call_id]
            self._tell(ticket, given_up)
            self._leave(call.run_id)

    @contextmanager
    def attempt(self, ticket: Ticket, dispatch: Dispatch) -> Iterator[None]:
        """The span of one attempt at a worker. Raises AttemptAborted if the fabric took it back."""
        self.in_flight[dispatch.worker] += 1
        try:
            with ticket.running(dispatch):
                yield
        finally:
            self.in_flight[dispatch.worker] -= 1

    def first_token(self, ticket: Ticket) -> None:
        ticket.first_s = self.clock.now_s()
        self.submit(FirstToken, call_id=ticket.call.call_id, attempt=ticket.attempt)

    def finished(self, ticket: Ticket, *, prompt_tokens: int, output_tokens: int, cached_tokens: int | None) -> None:
        ticket.ended = True
        ticket.answered_s, ticket.usage = self.clock.now_s(), (prompt_tokens, output_tokens, cached_tokens)
        self.submit(
            CallFinished,
            call_id=ticket.call.call_id,
            attempt=ticket.attempt,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            cached_tokens=cached_tokens,
        )

    def failed(self, ticket: Ticket, reason: str, *, retryable: bool) -> None:
        """The attempt gave no answer. A retryable failure is followed by a new order, unless bytes were sent."""
        was_alone = ticket.on_fallback
        ticket.ended = ticket.streamed or not retryable
        self.submit(
            CallFailed,
            call_id=ticket.call.call_id,
            attempt=ticket.attempt,
            reason=reason,
            streamed=ticket.streamed,
            retryable=retryable,
        )
        if was_alone and not ticket.ended:
            self._serve_alone(ticket)

    def cancel_run(self, run_id: str) -> int:
        """End a run and its open calls now. Returns how many calls were open."""
        problem = Problem(410, "run_cancelled", "The run was cancelled.", retry=False)
        open_tickets = [t for t in self._tickets.values() if t.call.run_id == run_id]
        for ticket in open_tickets:
            ticket.end(problem)
        self.submit(PipelineClosed, run_id=run_id, cancelled=True)
        return len(open_tickets)

    def decide(self, run_id: str, decision: GroupDecision) -> int:
        """The client's word on alternatives of a branch group. Returns how many open calls it has ended."""
        group, committed, discarded = decision.group, decision.committed, decision.discarded
        open_tickets = [t for t in self._tickets.values() if t.call.run_id == run_id and t.refused is None]
        self._metrics.branches.decided(len(committed), len(discarded))
        self.submit(BranchDecided, run_id=run_id, group=group, committed=committed, discarded=discarded)
        return sum(ticket.refused is not None for ticket in open_tickets)

    def end_all(self, problem: Problem) -> None:
        """End every open call now; each client is told `problem`."""
        for ticket in list(self._tickets.values()):
            ticket.end(problem)

    def close_run(self, run_id: str) -> int:
        """The run has no further hops: close it when its open calls have ended. Returns how many are open."""
        if self._open_calls[run_id]:
            self._closing.add(run_id)
        else:
            self.submit(PipelineClosed, run_id=run_id)
        return self._open_calls[run_id]

    def open_calls(self) -> int:
        return len(self._tickets)

    def stop(self) -> None:
        if self._wake is not None:
            self._wake[1].cancel()
            self._wake = None

    def _tell(self, ticket: Ticket, given_up: bool) -> None:
        """`given_up`: the client went away."""
        if ticket.answered_s is not None:
            outcome = "ok"
        elif ticket.refused is not None and ticket.refused.code == BRANCH_CANCELLED:
            outcome = "discarded"
        elif given_up or ticket.problem is not None:
            outcome = "cancelled"
        else:
            outcome = "failed" if ticket.attempt else "refused"
        prompt_tokens, output_tokens, cached_tokens = ticket.usage
        ended = Ended(
            call=ticket.call,
            outcome=outcome,
            arrived_s=ticket.arrived_s,
            first_s=ticket.first_s,
            ended_s=self.clock.now_s() if ticket.answered_s is None else ticket.answered_s,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            cached_tokens=cached_tokens,
            worker=ticket.worker,
        )
        for listener in self._listeners:
            listener(ended)

    def _leave(self, run_id: str) -> None:
        self._open_calls[run_id] -= 1
        if self._open_calls[run_id] <= 0:
            del self._open_calls[run_id]
            if run_id in self._closing:
                self._closing.discard(run_id)
                self.submit(PipelineClosed, run_id=run_id)

    # --- what is done -------------------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        self._watch(event)
        started_s = time.perf_counter()
        try:
            decisions = self._fabric.handle(event)
        except Exception as error:  # the shell must outlive any fault of the machine
            self._fabric_failed(event, error)
            return
        self._metrics.handled(event, time.perf_counter() - started_s)
        self._tail.append(event)
        if self._journal is not None:
            self._journal.write(event, decisions)
        for decision in decisions:
            self._perform(event, decision)

    def _perform(self, event: Event, decision: Decision) -> None:
        if isinstance(decision, WakeAt):
            self._wake_at(decision.at_s)
            return
        call_id = getattr(decision, "call_id", "")
        if isinstance(decision, Admit) and isinstance(event, CallArrived):
            call_id = event.call.call_id
        self._explained.note(call_id, event.at_s, decision)
        self._metrics.decided(decision)
        ticket = self._tickets.get(call_id)
        if ticket is None or ticket.on_fallback or isinstance(decision, (Admit, Hold)):
            return
        if isinstance(decision, Refuse) and decision.code == BRANCH_CANCELLED:
            late = isinstance(event, CallArrived) and event.call.call_id == call_id
            self._metrics.branches.cancelled("late" if late else "running" if ticket.in_attempt else "waiting")
        if isinstance(decision, (Dispatch, Refuse)):
            ticket.order(decision)
        elif isinstance(decision, Cancel):
            ticket.abort(decision.attempt, decision.reason)

    def _wake_at(self, at_s: float) -> None:
        if self._wake is not None:
            if self._wake[0] <= at_s:
                return
            self._wake[1].cancel()
        delay_s = max(_MIN_SLEEP_S, self.clock.real_s(at_s - self.clock.now_s()))
        self._wake = (at_s, asyncio.get_running_loop().call_later(delay_s, self._woke))

    def _woke(self) -> None:
        self._wake = None
        self.submit(Woke)

    def _watch(self, event: Event) -> None:
        match event:
            case WorkerJoined(worker=worker):
                self._up[worker.name] = worker.pool
            case WorkerDraining(name=name) | WorkerLost(name=name):
                self._up.pop(name, None)

    # --- without the fabric -------------------------------------------------------------------------------------------

    def _fabric_failed(self, event: Event, error: Exception) -> None:
        self._metrics.fabric_failed()
        log.error(
            "the fabric failed; serving by least-loaded",
            exc_info=error,
            extra={"event": _brief(event), "journal_tail": [_brief(e) for e in self._tail]},
        )
        if self._journal is not None:
            self._journal.write(event, [], error=type(error).__name__)
        for ticket in list(self._tickets.values()):
            if ticket.waiting:
                ticket.on_fallback = True
                self._inbox.append(CallCancelled(at_s=self._last_s, call_id=ticket.call.call_id))
                self._serve_alone(ticket)

    def _serve_alone(self, ticket: Ticket) -> None:
        call_id = ticket.call.call_id
        because = Because(reason="the fabric failed: least running attempts")
        names = [name for name, pool in self._up.items() if pool == ticket.call.pool]
        others = [name for name in names if name != ticket.worker] or names
        order: Dispatch | Refuse
        if not others or ticket.attempt >= _FALLBACK_ATTEMPTS:
            order = Refuse(
                call_id=call_id, code="no_worker", message="No worker could serve the call.", because=because
            )
        else:
            order = Dispatch(
                call_id=call_id,
                worker=min(others, key=lambda name: (self.in_flight[name], name)),
                attempt=ticket.attempt + 1,
                urgency_s=0.0,
                hit_tokens=0,
                budget_s=None,
                slack_s=None,
                because=because,
            )
        self._explained.note(call_id, self._last_s, order)
        self._metrics.decided(order)
        ticket.order(order)


def _brief(event: Event) -> str:
    """An event for a log: when, what, whose."""
    match event:
        case CallArrived(call=call):
            subject = call.call_id
        case WorkerJoined(worker=worker):
            subject = worker.name
        case _:
            subject = next((str(getattr(event, n)) for n in ("call_id", "run_id", "name") if hasattr(event, n)), "")
    return f"{event.at_s:.6f} {type(event).__name__} {subject}".rstrip()

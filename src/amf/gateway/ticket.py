"""One call in flight, between the request handler that serves it and the driver that hears the fabric.

The handler asks `next()` what to do and runs each attempt itself. The driver may end a running attempt at any moment: it
then cancels the handler's task, and `running()` turns that cancellation, and no other, into `AttemptAborted`.
"""

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from amf.core.decisions import Dispatch, Refuse
from amf.core.types import Call
from amf.gateway.problem import Problem, refusal


class AttemptAborted(Exception):
    """The fabric took the attempt back: its upstream is to be closed; what comes next is the fabric's to say."""


class Ticket:
    def __init__(self, call: Call, wait_limit_s: float) -> None:
        self.call = call
        self.waited_s = 0.0  # real seconds spent in `next`
        self.attempt = 0
        self.worker = ""
        self.streamed = False  # bytes of an answer have reached the client
        self.ended = False  # finished, or failed for good
        self.on_fallback = False  # the fabric failed; the driver serves this call on its own
        self.arrived_s = 0.0  # modelled, as the two below
        self.first_s: float | None = None
        self.answered_s: float | None = None
        self.refused: Refuse | None = None  # how the fabric ended it
        self.usage: tuple[int, int, int | None] = (call.prompt_tokens, 0, None)  # prompt, output, cached tokens
        self._wait_limit_s = wait_limit_s
        self._task = asyncio.current_task()
        self._orders: deque[Dispatch | Refuse] = deque()
        self.problem: Problem | None = None  # why it was ended from outside
        self._waiter: asyncio.Future[None] | None = None
        self._in_attempt = False
        self._abort = ""

    @property
    def waiting(self) -> bool:
        """Nothing runs for this call and nothing has been decided."""
        return not (self.ended or self._in_attempt or self._orders or self.problem)

    @property
    def in_attempt(self) -> bool:
        return self._in_attempt

    async def next(self) -> Dispatch | Refuse:
        """The next order. Raises Problem if the run was cancelled or the wait is over its limit (real seconds)."""
        loop = asyncio.get_running_loop()
        limit_s = loop.time() + self._wait_limit_s
        while not self._orders and self.problem is None:
            self._waiter = loop.create_future()
            started_s = loop.time()
            try:
                async with asyncio.timeout_at(limit_s):
                    await self._waiter
            except TimeoutError:
                raise refusal("queue_timeout", f"No worker took the call within {self._wait_limit_s:g} s.") from None
            finally:
                self._waiter = None
                self.waited_s += loop.time() - started_s
        if self.problem is not None:
            raise self.problem
        return self._orders.popleft()

    def order(self, decision: Dispatch | Refuse) -> None:
        """What the fabric decided. An order that comes while an attempt runs replaces that attempt."""
        self._orders.append(decision)
        if isinstance(decision, Refuse):
            self.refused = decision
        self._wake()
        if self._in_attempt:
            self._interrupt("placed anew")

    def end(self, problem: Problem) -> None:
        """End the call from outside, whatever it does."""
        self.problem = problem
        self._wake()
        if self._in_attempt:
            self._interrupt(problem.message)

    def overdue(self, problem: Problem) -> None:
        """The client waits no longer: end the call unless its answer has begun."""
        if self.first_s is None and not self.ended:
            self.end(problem)

    def abort(self, attempt: int, reason: str) -> None:
        """Take back `attempt` if it is the one that runs."""
        if self._in_attempt and attempt == self.attempt:
            self._interrupt(reason)

    @contextmanager
    def running(self, dispatch: Dispatch) -> Iterator[None]:
        """The span of one attempt. Raises AttemptAborted if it was taken back."""
        self.attempt, self.worker = dispatch.attempt, dispatch.worker
        self._in_attempt, self._abort = True, ""
        try:
            yield
        except asyncio.CancelledError:
            assert self._task is not None
            if not self._abort or self._task.uncancel() > 0:
                raise
            raise AttemptAborted(self._abort) from None
        finally:
            self._in_attempt = False

    def check(self) -> None:
        """To be called after telling the driver something inside an attempt. Raises AttemptAborted."""
        if self._abort:
            raise AttemptAborted(self._abort)

    def _interrupt(self, reason: str) -> None:
        if self._abort:
            return
        self._abort = reason
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

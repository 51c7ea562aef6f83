"""The simulated worker on the wall clock.

The worker's own time is real time since the start multiplied by `time_scale`. One task drives it: advance to now, tell the
waiting handlers, sleep until the worker's next event. A submit or an abort first catches up, then wakes the task, so the
worker only ever sees time move forward. Between events decoding is not stepped: streams ask the worker for their
progress every `flush_s`, and everything produced since goes out at once.

Waking is limited to once a real millisecond: at a high time scale many events fall into one wake-up, each still with its
exact time.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from amf.emulator.faults import Faults
from amf.emulator.kv_feed import KvFeed
from amf.emulator.metrics import Timings
from amf.emulator.ticket import Ticket
from amf.sim.messages import Finished, FirstTokenOut, SimEvent, SimRequest, Started
from amf.sim.worker import SimWorker

_MIN_SLEEP_S = 0.001


class LiveWorker:
    """Drives `worker` on the running event loop. `die` is called when a fault says that the process should end, and when
    the driver itself fails."""

    def __init__(self, worker: SimWorker, time_scale: float, flush_s: float, timings: Timings) -> None:
        self.worker = worker
        self.kv_feed: KvFeed | None = None
        self._timings = timings
        self._time_scale = time_scale
        self._flush_s = flush_s
        self._wake = asyncio.Event()
        self._tickets: dict[str, Ticket] = {}
        self._decoding: dict[str, Ticket] = {}
        self._leaving: deque[tuple[float, Ticket]] = deque()  # aborted, and until when the worker may speak of them
        self._flushed_s = 0.0
        self._evicted_s = 0.0
        self._faults = Faults()
        self._die: Callable[[], None] = lambda: None
        self._stalled = False

    def start(self, faults: Faults, die: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        self._loop, self._start_s = loop, loop.time()
        self._faults, self._die = faults, die
        self._timers = []
        if faults.die_after_s is not None:
            self._timers.append(loop.call_later(faults.die_after_s, die))
        if faults.stall_after_s is not None:
            self._timers.append(loop.call_later(faults.stall_after_s, self._stall))
        self._task = asyncio.create_task(self._drive())
        self._task.add_done_callback(self._report_failure)

    async def close(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def now_s(self) -> float:
        """The worker's own time."""
        return (self._loop.time() - self._start_s) * self._time_scale

    @property
    def _watching(self) -> bool:
        """Whether it matters what happens between events: to streams, and to a worker that dies of its tokens."""
        return bool(self._decoding) or (self._faults.die_after_tokens is not None and bool(self._tickets))

    @property
    def pending(self) -> int:
        """Sequences of which the worker may still speak."""
        return len(self._tickets)

    def submit(self, ticket: Ticket) -> None:
        """Raises QueueFull or RequestTooLarge; then the worker has not taken it."""
        if self._stalled:
            return
        now_s = self.catch_up()
        request = SimRequest(
            request_id=ticket.request_id,
            prompt_tokens=ticket.prompt_tokens,
            output_tokens=ticket.output_tokens,
            block_keys=ticket.keys,
            priority=ticket.priority,
        )
        self.worker.submit(request, now_s)
        ticket.submitted_s = now_s
        self._tickets[ticket.request_id] = ticket
        self._wake.set()

    def abort(self, ticket: Ticket) -> None:
        """Give the sequence up. Nothing happens if it is done."""
        if ticket.done or self._stalled:
            return
        now_s = self.catch_up()
        if not self.worker.abort(ticket.request_id, now_s):
            return
        self._timings.aborted()
        self._decoding.pop(ticket.request_id, None)
        self._leaving.append((self.worker.next_event_s() or now_s, ticket))
        self._wake.set()

    def clear_cache(self) -> bool:
        """False while blocks are in use."""
        cleared = self.worker.clear_cache(self.catch_up())
        self._wake.set()
        return cleared

    def catch_up(self) -> float:
        """Bring the worker to now and tell whoever waits. Returns the worker's own time."""
        now_s = self.now_s()
        if self._stalled:
            return now_s
        self._evict_silently(now_s)
        events = self.worker.advance(now_s)
        if events:
            if self.kv_feed is not None:
                self.kv_feed.publish(events, self._tickets)
            for event in events:
                self._handle(event)
        while self._leaving and self._leaving[0][0] <= now_s:
            self._tickets.pop(self._leaving.popleft()[1].request_id)
        self._flush(now_s)
        limit = self._faults.die_after_tokens
        if limit is not None and self.worker.stats.output_tokens >= limit:
            self._die()
        return now_s

    async def _drive(self) -> None:
        while True:
            self._wake.clear()
            now_s = self.catch_up()
            delay_s = self._delay_s(now_s)
            timer = self._loop.call_later(delay_s, self._wake.set) if delay_s is not None else None
            await self._wake.wait()
            if timer is not None:
                timer.cancel()

    def _delay_s(self, now_s: float) -> float | None:
        """Real seconds until something is due: an event, or a flush for the streams that are decoding."""
        if self._stalled:
            return None
        due_s = self.worker.next_event_s()
        delays = [] if due_s is None else [(due_s - now_s) / self._time_scale]
        if self._watching:
            delays.append(self._flushed_s + self._flush_s - self._loop.time())
        return max(_MIN_SLEEP_S, min(delays)) if delays else None

    def _handle(self, event: SimEvent) -> None:
        match event:
            case Started():
                ticket = self._tickets[event.request_id]
                ticket.started_s, ticket.cached_tokens = event.at_s, event.cached_tokens
            case FirstTokenOut():
                ticket = self._tickets[event.request_id]
                ticket.first_token_s, ticket.produced_tokens = event.at_s, 1
                if ticket.streams:
                    self._decoding[ticket.request_id] = ticket
                    ticket.changed.set()
            case Finished():
                ticket = self._tickets[event.request_id]
                ticket.cached_tokens, ticket.produced_tokens = event.cached_tokens, event.output_tokens
                ticket.finished_s = event.at_s
                del self._tickets[event.request_id]
                self._decoding.pop(event.request_id, None)
                self._timings.finished(ticket)
                ticket.changed.set()

    def _flush(self, now_s: float) -> None:
        real_s = self._loop.time()
        if not self._watching or real_s < self._flushed_s + self._flush_s:
            return
        self._flushed_s = real_s
        for request_id, ticket in self._decoding.items():
            produced = self.worker.progress(request_id, now_s)
            if produced > ticket.produced_tokens:
                ticket.produced_tokens = produced
                ticket.changed.set()

    def _evict_silently(self, now_s: float) -> None:
        rate = self._faults.evict_silently_tokens_per_s
        tokens = int(rate * (now_s - self._evicted_s))
        if rate and tokens >= self.worker.config.block_tokens:
            self._evicted_s = now_s
            self.worker.evict(tokens, now_s)

    def _report_failure(self, task: asyncio.Task[None]) -> None:
        """A worker that nobody drives would leave its clients waiting for ever: it dies instead."""
        if not task.cancelled() and (error := task.exception()):
            self._loop.call_exception_handler({"message": "the emulated worker failed", "exception": error})
            self._die()

    def _stall(self) -> None:
        self._stalled = True

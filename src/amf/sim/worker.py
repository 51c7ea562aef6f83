"""A simulated engine: continuous batching over a paged, prefix-cached KV memory, in virtual time. It owns the truth
that the control plane can only believe.

The scheduler (worker_schedule.py) says what an iteration does and `amf.core.cost.iteration_s` how long it takes. This
file owns time. An iteration that starts at s is formed only when time has passed s, so that everything submitted at s
is in it in whatever order the shell asks; its results come out at its end. Where nothing that the shell waits for would
happen, a `QuietRun` stands for many iterations. Both are planned from what is known at their start and never from how far
`advance` was asked to go, so that small steps and one large step give the same events; what the outside does takes
effect at the next boundary between iterations.
"""

import math
from dataclasses import replace

from amf.core.cost import iteration_s
from amf.sim.messages import (
    BlocksDropped,
    BlocksEvicted,
    BlocksOffloaded,
    BlocksStored,
    CacheCleared,
    Finished,
    FirstTokenOut,
    Preempted,
    SimEvent,
    SimRequest,
    SimWorkerConfig,
    Started,
)
from amf.sim.worker_decode import QuietRun
from amf.sim.worker_schedule import Scheduler
from amf.sim.worker_state import Iteration, Live, QueueFull, RequestTooLarge, WorkerStats

__all__ = ["QueueFull", "RequestTooLarge", "SimWorker", "WorkerStats"]


class SimWorker:
    """One engine. Times are seconds on the shell's clock and must not decrease (ValueError).

    A sequence that would outgrow the worker's whole KV memory ends there, as at an engine's maximum model length. At
    most `token_budget` sequences run at once. `stepping` computes every iteration on its own: same events, only
    slower. `outcomes_only`: for a shell that waits for first tokens and ends alone. Nothing is told of blocks, and
    `next_event_s` looks out for nothing else, so that runs can pass over the boundaries of blocks and of prefill
    chunks: all else is the same, much faster.
    """

    def __init__(self, config: SimWorkerConfig, *, stepping: bool = False, outcomes_only: bool = False) -> None:
        _check_config(config)
        self.config = config
        self._stepping = stepping
        self._outcomes_only = outcomes_only
        self._counters = WorkerStats()
        self._scheduler = Scheduler(config, self._counters)
        self._live: dict[str, Live] = {}
        self._aborting: list[Live] = []
        self._flight: Iteration | QuietRun | None = None
        self._plan: QuietRun | None = None  # what would be in flight next, if time passes and nothing comes
        self._is_planned = False  # else `_plan` says nothing; planned and None: an iteration comes next
        self._now_s = -math.inf
        self._free_at_s = -math.inf  # when nothing is in flight: the boundary at which the next iteration starts
        self._speed = 1.0
        self._outbox: list[SimEvent] = []
        self._ended: dict[str, int] = {}  # output of requests whose end is still in the outbox

    @property
    def speed(self) -> float:
        """What the seconds of an iteration are multiplied by (2.0: half as fast), from the next iteration on."""
        return self._speed

    @speed.setter
    def speed(self, factor: float) -> None:
        if not 0 < factor < math.inf:
            raise ValueError(f"speed must be a positive number, not {factor}")
        self._interrupt()
        self._speed = factor

    @property
    def stats(self) -> WorkerStats:
        """A copy of the counters and gauges at the last time given."""
        scheduler, pool = self._scheduler, self._scheduler.pool
        run = self._flight if isinstance(self._flight, QuietRun) else None
        done, begun = (run.done(self._now_s) - run.booked, run.begun(self._now_s) - run.booked) if run else (0, 0)
        taken = scheduler.blocks_ahead(begun)
        return replace(
            self._counters,
            output_tokens=self._counters.output_tokens + done * scheduler.lockstep.batch,
            computed_tokens=self._counters.computed_tokens + scheduler.tokens_ahead(begun),
            running=len(scheduler.admitted),
            waiting=len(scheduler.waiting),
            kv_used_ratio=(pool.used + taken) / pool.total,
            cached_free_blocks=min(pool.cached_free, pool.free - taken),
        )

    def submit(self, request: SimRequest, now_s: float) -> None:
        """Put a request into the queue. Raises ValueError for a malformed request or an id in use, RequestTooLarge
        when the prompt and a token of output exceed the KV memory, QueueFull at `max_waiting`; nothing has changed
        then."""
        self._reach(now_s)
        capacity = self._scheduler.pool.total * self.config.block_tokens
        _check_request(request, self.config)
        if request.request_id in self._live:
            raise ValueError(f"request id {request.request_id!r} is in use")
        if (least := request.prompt_tokens + min(1, request.output_tokens)) > capacity:
            raise RequestTooLarge(f"needs {least} KV tokens at least, the worker has {capacity}")
        waiting = self._scheduler.waiting
        if self.config.max_waiting is not None and len(waiting) >= self.config.max_waiting:
            raise QueueFull(f"{len(waiting)} requests are waiting, the limit is {self.config.max_waiting}")
        target = min(request.output_tokens, capacity - request.prompt_tokens)
        live = Live(request=request, arrival_s=now_s, target=target)
        self._live[request.request_id] = live
        waiting.push(live)
        self._interrupt()

    def abort(self, request_id: str, now_s: float) -> bool:
        """Stop a request: at once if it waits, else at the end of the iteration in flight. No event tells of its end.
        False if it is unknown or has already ended."""
        self._reach(now_s)
        live = self._live.pop(request_id, None)
        if live is None:
            return False
        live.aborted = True
        self._counters.aborted += 1
        self._interrupt()
        if live in self._scheduler.waiting:
            self._scheduler.waiting.remove(live)
        elif self._flight is None:
            self._scheduler.drop(live)
        else:
            self._aborting.append(live)
        return True

    def next_event_s(self) -> float | None:
        """When to call `advance` next: no later than the next event. Now and then nothing has happened by then, and
        asking again gives a later time. None: idle."""
        if self._outbox:
            return self._now_s
        scheduler = self._scheduler
        if isinstance(self._flight, Iteration):
            return self._flight.end_s
        if scheduler.idle:
            return None
        run = self._flight or self._plan_run()
        boundary_s, ahead = (run.end_s, run.count - run.booked) if run else (self._start_s(), 0)
        soon_s = math.nextafter(boundary_s, math.inf)
        starts = not self._outcomes_only and scheduler.may_admit(not self._stepping)
        if starts or scheduler.may_preempt(ahead) or self._aborting:
            return soon_s
        return max(soon_s, boundary_s + self._seconds(*scheduler.outline(ahead)))

    def advance(self, now_s: float) -> list[SimEvent]:
        """Everything that has happened since the last call, up to and including `now_s`, in order of time."""
        self._reach(now_s)
        events, self._outbox = self._outbox, []
        self._ended.clear()
        return events

    def progress(self, request_id: str, now_s: float) -> int:
        """Output tokens produced by `now_s`. Raises KeyError for a request that is unknown, aborted, or whose end
        `advance` has already told."""
        self._reach(now_s)
        if request_id in self._ended:
            return self._ended[request_id]
        live = self._live[request_id]
        if live.phase < 0:
            return live.produced
        ahead = self._flight.done(now_s) - self._flight.booked if isinstance(self._flight, QuietRun) else 0
        return live.offset + self._scheduler.lockstep.tick + ahead

    def spent(self, request_id: str, now_s: float) -> int:
        """Tokens that were produced for it by `now_s`, and computed with the iteration in flight, but for what the cache gave;
        recomputation after a preemption is not counted. 0 for a request that is unknown, or has not started."""
        self._reach(now_s)
        live, flight = self._live.get(request_id), self._flight
        if live is None or live.cached_tokens < 0:
            return 0
        if live.phase >= 0 or live.produced:
            return live.request.prompt_tokens - live.cached_tokens + self.progress(request_id, now_s)
        ahead = flight.begun(now_s) - flight.booked if isinstance(flight, QuietRun) and live.seq >= 0 else 0
        return max(0, live.computed + self._scheduler.tokens_ahead(ahead) - live.cached_tokens)

    def found(self, request_id: str) -> int | None:
        """Prompt tokens that the cache gave it; None for a request that is unknown, or has not started."""
        live = self._live.get(request_id)
        return None if live is None or live.cached_tokens < 0 else live.cached_tokens

    def clear_cache(self, now_s: float) -> bool:
        """Forget all cached blocks. False, and nothing forgotten, while any block is in use."""
        self._reach(now_s)
        cleared = self._scheduler.clear()
        if cleared:
            self._outbox.append(CacheCleared(at_s=now_s))
        return cleared

    def evict(self, tokens: int, now_s: float) -> int:
        """A fault: lose cached but free blocks worth `tokens` (rounded up to blocks), least recently used first,
        without telling anyone. Returns the tokens lost."""
        self._reach(now_s)
        self._interrupt()
        if isinstance(self._flight, QuietRun):  # what has begun takes its blocks before the fault
            self._book(self._flight)
        size = self.config.block_tokens
        return self._scheduler.pool.lose(-(-max(0, tokens) // size)) * size

    def check_invariants(self) -> None:
        """Raise AssertionError where the worker's books do not balance (for tests; linear in the number of
        blocks)."""
        scheduler = self._scheduler
        scheduler.check()
        inside = [live for live in scheduler.admitted if not live.aborted]
        queued = [live for live in self._live.values() if live in scheduler.waiting]
        assert len(queued) == len(scheduler.waiting), "a request waits that is not live"
        assert {*inside, *queued} == set(self._live.values()), "a live request is neither running nor waiting"
        assert len(scheduler.admitted) == len(inside) + len(self._aborting), "an aborted request stays"
        if isinstance(self._flight, Iteration):
            assert 0 < self._flight.tokens <= self.config.token_budget, "iteration over its token budget"

    def _reach(self, now_s: float) -> None:
        """Bring the state to `now_s`: all iterations that end by then, and the one in flight."""
        if not now_s >= self._now_s:
            raise ValueError(f"time runs backwards: {now_s} after {self._now_s}")
        self._now_s = now_s
        while True:
            if self._flight is None:
                if self._scheduler.idle or (start_s := self._start_s()) >= now_s:
                    return
                self._free_at_s = start_s
                self._flight = self._plan_run() or self._form()
            if self._flight.end_s > now_s:
                return
            self._land()

    def _start_s(self) -> float:
        """When the next iteration starts, as nothing is in flight: at once, if there is anything to compute."""
        scheduler = self._scheduler
        return max(self._free_at_s, scheduler.loads.next_s) if scheduler.only_loads else self._free_at_s

    def _plan_run(self) -> QuietRun | None:
        if not self._is_planned and not self._stepping:
            scheduler, self._is_planned = self._scheduler, True
            loaded_s = scheduler.next_loaded_s
            if loaded_s <= self._free_at_s:
                return None
            ticks = scheduler.silent_ticks() if self._outcomes_only else scheduler.quiet_ticks()
            if ticks > 0:
                self._plan = QuietRun(self._free_at_s, ticks, lambda ahead: self._seconds(*scheduler.outline(ahead)))
                if loaded_s < self._plan.end_s:
                    self._plan.cut(loaded_s)
        return self._plan

    def _form(self) -> Iteration:
        start_s = self._free_at_s
        flight = self._scheduler.form(not self._stepping, start_s)
        for live in flight.started:
            self._outbox.append(Started(at_s=start_s, request_id=live.request_id, cached_tokens=live.cached_tokens))
        prefill = [(new, before) for _, new, before in flight.chunks]
        flight.end_s = start_s + self._seconds(prefill, flight.decodes, flight.decode_kv_tokens)
        return flight

    def _seconds(self, prefill: list[tuple[int, int]], batch: int, kv_tokens: int) -> float:
        return self._speed * iteration_s(self.config.profile, prefill, batch, kv_tokens)

    def _interrupt(self) -> None:
        """Something came from outside: decide anew at the next boundary."""
        self._plan, self._is_planned = None, False
        if isinstance(self._flight, QuietRun):
            self._flight.cut(self._now_s)
            if self._flight.end_s <= self._now_s:
                self._land()
        elif self._flight is None:
            self._free_at_s = max(self._free_at_s, self._now_s)

    def _land(self) -> None:
        """What is in flight has ended: its results come out and the aborted leave."""
        flight, scheduler = self._flight, self._scheduler
        assert flight is not None
        self._flight, self._plan, self._is_planned, self._free_at_s = None, None, False, flight.end_s
        if isinstance(flight, QuietRun):
            self._book(flight)
        else:
            self._report_blocks(flight)
            firsts, ended = scheduler.complete(flight)
            self._report_tokens(firsts, ended, flight.end_s)
        for live in self._aborting:
            if live.seq >= 0 or live in scheduler.loads.waiting:
                scheduler.drop(live)
        self._aborting.clear()

    def _book(self, run: QuietRun) -> None:
        self._scheduler.pass_over(run.count - run.booked)
        run.booked = run.count

    def _report_blocks(self, flight: Iteration) -> None:
        out, at_s = self._outbox.append, flight.end_s
        if not self._outcomes_only:
            for kind, blocks in (
                (BlocksEvicted, flight.evicted),
                (BlocksOffloaded, flight.offloaded),
                (BlocksDropped, flight.dropped),
            ):
                if blocks:
                    out(kind(at_s=at_s, keys=tuple(blocks)))
        for live in flight.preempted:
            if not live.aborted:
                out(Preempted(at_s=at_s, request_id=live.request_id))
        for live, first, end in () if self._outcomes_only else flight.stored:
            keys = live.request.block_keys
            out(
                BlocksStored(
                    at_s=at_s,
                    request_id=live.request_id,
                    keys=tuple(keys[first:end]),
                    parent_key=keys[first - 1] if first else None,
                    first_block=first,
                )
            )

    def _report_tokens(self, firsts: list[Live], ended: list[Live], at_s: float) -> None:
        for live in firsts:
            if not live.aborted:
                self._outbox.append(FirstTokenOut(at_s=at_s, request_id=live.request_id))
        for live in ended:
            if live.aborted:
                continue
            del self._live[live.request_id]
            self._counters.finished += 1
            self._ended[live.request_id] = live.produced
            self._outbox.append(
                Finished(
                    at_s=at_s,
                    request_id=live.request_id,
                    cached_tokens=live.cached_tokens,
                    output_tokens=live.produced,
                )
            )


def _check_config(config: SimWorkerConfig) -> None:
    for name in ("block_tokens", "max_running", "token_budget"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, not {getattr(config, name)}")
    if config.dram_tokens < 0 or not config.dram_bytes_per_s > 0:
        raise ValueError("dram_tokens must not be negative, and dram_bytes_per_s above 0")
    if config.kv_tokens < config.block_tokens:
        raise ValueError(f"kv_tokens ({config.kv_tokens}) must hold at least one block of {config.block_tokens} tokens")


def _check_request(request: SimRequest, config: SimWorkerConfig) -> None:
    if request.prompt_tokens < 1 or request.output_tokens < 0:
        raise ValueError(
            f"a request has a prompt of at least 1 token and no negative output, "
            f"not {request.prompt_tokens} and {request.output_tokens}"
        )
    needed = (request.prompt_tokens + request.output_tokens) // config.block_tokens
    if config.prefix_caching and len(request.block_keys) < needed:
        raise ValueError(
            f"{len(request.block_keys)} block keys for {needed} full blocks of {config.block_tokens} tokens"
        )

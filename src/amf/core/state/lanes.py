"""Where each pipeline lives, and which idle contexts are worth their memory.

A *lane* is one pipeline's conversation with one pool: the worker that holds its context, how large that is, and whether a
call of it is in flight, waiting with us, or neither (*idle*: a tool or a person is busy). Idle contexts are *protected*
for a while after the last call ended; a lane is a *resident* of its worker while it is likely to come back. Both end by
time alone, so a heap of endings keeps each worker's sums current instead of a scan per decision. A lane remembers what
it was counted as, so that taking it out of the sums undoes exactly that.
"""

from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf

from amf.core.types import Prefix


@dataclass(slots=True)
class Lane:
    run_id: str
    pool: str
    worker: str
    prefix: Prefix
    context_tokens: int
    in_flight: int = 0
    earlier: Prefix | None = None  # kept until the call ends: to free its keys takes longer than to decide
    waiting: int = 0
    idle_since_s: float = inf
    protected_until_s: float = -inf
    resident_until_s: float = inf
    counted_waiting_tokens: int = 0
    counted_protected_tokens: int = 0
    counted_urgent_tokens: int = 0
    counted_live_tokens: int = 0
    counted_resident: bool = False
    has_deadline: bool = False
    paused: bool = False  # a policy took its idle context off the worker's account
    announced_s: tuple[float, float] = (-inf, -inf)  # endings already in the heap

    @property
    def idle(self) -> bool:
        return not self.in_flight

    @property
    def claimed_tokens(self) -> int:
        """What it keeps on its worker while no call of it is there."""
        return self.counted_protected_tokens + self.counted_waiting_tokens


class Home:
    """One worker's lanes and their sums."""

    __slots__ = ("lanes", "live_tokens", "protected_tokens", "residents", "urgent_tokens", "waiting_tokens")

    def __init__(self) -> None:
        self.lanes: dict[tuple[str, str], Lane] = {}
        self.protected_tokens = 0  # idle, within their protection
        self.waiting_tokens = 0  # idle on the worker while their next call waits with us
        self.urgent_tokens = 0  # of both, the share of pipelines with a deadline
        self.live_tokens = 0  # in flight, or idle and expected back; not while their next call waits with us
        self.residents = 0

    def claimed_tokens(self, run_id: str, pool: str, has_deadline: bool) -> int:
        """Idle contexts, protected or with a call that waits, that a call of this lane must leave alone. Never its own; and
        those without a deadline make way for a call that has one, as in the queue."""
        own = self.lanes.get((run_id, pool))
        if has_deadline:
            return self.urgent_tokens - (own.counted_urgent_tokens if own else 0)
        return self.protected_tokens + self.waiting_tokens - (own.claimed_tokens if own else 0)

    def waiting_tokens_beside(self, run_id: str, pool: str) -> int:
        """`waiting_tokens` without this lane's own."""
        own = self.lanes.get((run_id, pool))
        return self.waiting_tokens - (own.counted_waiting_tokens if own else 0)


class Lanes:
    """Every change takes a lane out of its home's sums, edits it, and puts it back: the sums cannot drift."""

    def __init__(self) -> None:
        self._lanes: dict[tuple[str, str], Lane] = {}
        self.homes: dict[str, Home] = {}
        self._endings: list[tuple[float, str, str]] = []  # (when, run, pool)
        self._now_s = -inf

    def get(self, run_id: str, pool: str) -> Lane | None:
        return self._lanes.get((run_id, pool))

    def home(self, worker: str) -> Home:
        return self.homes.get(worker) or self.homes.setdefault(worker, Home())

    def advance(self, now_s: float) -> list[str]:
        """Let protections and residences end that are due by now. Returns a pool's name for each lane given up."""
        self._now_s = now_s
        given_up: list[str] = []
        while self._endings and self._endings[0][0] <= now_s:
            _, run_id, pool = heappop(self._endings)
            lane = self._take(run_id, pool)
            if lane is not None:
                if lane.counted_resident and lane.idle and not lane.waiting and lane.resident_until_s <= now_s:
                    given_up.append(pool)
                self._put(lane)
        return given_up

    def next_ending_s(self) -> float:
        return self._endings[0][0] if self._endings else inf

    def arrived(self, run_id: str, pool: str, still_warm: bool) -> None:
        """The lane's next call waits with us. A context that is warm no more is worth no protection."""
        lane = self._take(run_id, pool)
        if lane is not None:
            lane.waiting += 1
            if not still_warm:
                lane.context_tokens = 0
            self._put(lane)

    def cooled(self, run_id: str, pool: str) -> None:
        """What it had was evicted while its call waited; calls that wait for each other's lost contexts would wait for ever."""
        lane = self._lanes.get((run_id, pool))
        if lane is not None and lane.counted_waiting_tokens:
            self._take(run_id, pool)
            lane.context_tokens = 0
            self._put(lane)

    def left(self, run_id: str, pool: str) -> None:
        """A waiting call ended without being sent."""
        lane = self._take(run_id, pool)
        if lane is not None:
            lane.waiting = max(0, lane.waiting - 1)
            self._put(lane)

    def sent(self, run_id: str, pool: str, worker: str, prefix: Prefix, has_deadline: bool) -> None:
        """A waiting call of the lane was sent to this worker, which is its home from now on."""
        lane = self._take(run_id, pool)
        if lane is None:
            lane = Lane(run_id, pool, worker, prefix, 0, waiting=1)
            self._lanes[(run_id, pool)] = lane
        lane.worker, lane.prefix, lane.earlier = worker, prefix, lane.prefix
        lane.waiting = max(0, lane.waiting - 1)
        lane.in_flight += 1
        lane.context_tokens = prefix.total_tokens
        lane.resident_until_s = inf
        lane.has_deadline = has_deadline
        lane.paused = False
        self._put(lane)

    def ended(self, run_id: str, pool: str, context_tokens: int, protect_s: float, reside_s: float) -> None:
        """An attempt ended; with the last one the lane is idle, protected and resident for these many seconds."""
        lane = self._take(run_id, pool)
        if lane is None:
            return
        lane.in_flight, lane.earlier = max(0, lane.in_flight - 1), None
        lane.context_tokens = context_tokens
        lane.idle_since_s = self._now_s
        lane.protected_until_s = self._now_s + protect_s
        lane.resident_until_s = self._now_s + reside_s
        self._put(lane)

    def pause(self, run_id: str, pool: str) -> None:
        """The idle context gives up its place until a call of the lane is sent. No sum changes."""
        lane = self._lanes.get((run_id, pool))
        if lane is not None:
            lane.paused = True

    def close(self, run_id: str, pools: tuple[str, ...]) -> None:
        for pool in pools:
            if self._take(run_id, pool) is not None:
                del self._lanes[(run_id, pool)]

    def drop_worker(self, worker: str) -> None:
        home = self.homes.pop(worker, None)
        for key in list(home.lanes) if home else ():
            del self._lanes[key]

    def check_invariants(self) -> None:
        for worker, home in self.homes.items():
            lanes = home.lanes.values()
            assert all(lane.worker == worker for lane in lanes)
            assert home.waiting_tokens == sum(lane.context_tokens for lane in lanes if lane.idle and lane.waiting)
            protected = [
                lane for lane in lanes if lane.idle and not lane.waiting and lane.protected_until_s > self._now_s
            ]
            assert home.protected_tokens == sum(lane.context_tokens for lane in protected)
            claimed = [*protected, *(lane for lane in lanes if lane.idle and lane.waiting)]
            assert home.urgent_tokens == sum(lane.context_tokens for lane in claimed if lane.has_deadline)
            live = [
                lane for lane in lanes if lane.in_flight or (lane.resident_until_s > self._now_s and not lane.waiting)
            ]
            assert home.live_tokens == sum(lane.context_tokens for lane in live)
            assert home.residents == sum(1 for lane in lanes if lane.resident_until_s > self._now_s)
        assert len(self._lanes) == sum(len(home.lanes) for home in self.homes.values())

    def _take(self, run_id: str, pool: str) -> Lane | None:
        """Out of its home and its sums, if the lane exists."""
        lane = self._lanes.get((run_id, pool))
        if lane is not None:
            home = self.homes[lane.worker]
            del home.lanes[(run_id, pool)]
            home.waiting_tokens -= lane.counted_waiting_tokens
            home.protected_tokens -= lane.counted_protected_tokens
            home.urgent_tokens -= lane.counted_urgent_tokens
            home.live_tokens -= lane.counted_live_tokens
            home.residents -= lane.counted_resident
        return lane

    def _put(self, lane: Lane) -> None:
        """Into its home, counted as what it is now."""
        home, now_s = self.home(lane.worker), self._now_s
        home.lanes[(lane.run_id, lane.pool)] = lane
        protected = lane.idle and not lane.waiting and lane.protected_until_s > now_s
        lane.counted_waiting_tokens = lane.context_tokens if lane.idle and lane.waiting else 0
        lane.counted_protected_tokens = lane.context_tokens if protected else 0
        lane.counted_urgent_tokens = lane.claimed_tokens if lane.has_deadline else 0
        lane.counted_resident = lane.resident_until_s > now_s
        is_live = lane.in_flight or (lane.counted_resident and not lane.waiting)
        lane.counted_live_tokens = lane.context_tokens if is_live else 0
        home.urgent_tokens += lane.counted_urgent_tokens
        home.live_tokens += lane.counted_live_tokens
        home.waiting_tokens += lane.counted_waiting_tokens
        home.protected_tokens += lane.counted_protected_tokens
        home.residents += lane.counted_resident
        endings = (lane.protected_until_s, lane.resident_until_s)
        if endings != lane.announced_s:
            lane.announced_s = endings
            for end_s in endings:
                if now_s < end_s < inf:
                    heappush(self._endings, (end_s, lane.run_id, lane.pool))

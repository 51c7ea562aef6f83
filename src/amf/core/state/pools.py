"""One model's workers, what is warm on them, and the calls that wait for one of them.

Waiting calls are kept in order of the latest start they were last given, so that a look at the first few is cheap however
many wait. A call's place is renewed when it is looked at.
"""

from bisect import bisect_left, insort

from amf.core.config import FabricConfig
from amf.core.state.pace import Paces
from amf.core.state.pipelines import CallState
from amf.core.state.warmth import Warmth
from amf.core.state.workers import WorkerState, WorkerStatus


class Pool:
    def __init__(self, name: str, config: FabricConfig) -> None:
        self.name = name
        self.workers: dict[str, WorkerState] = {}
        self.warmth = Warmth(config)
        self.waiting: dict[str, CallState] = {}
        self._order: list[tuple[float, float, str]] = []  # (latest start, arrival, call) of every waiting call
        self.dispatched = 0
        self.down_since_s: float | None = None
        self.usable: list[WorkerState] = []
        self.tiers_tokens = 0  # HBM and DRAM of all usable workers; 0 if none has DRAM
        self.waiting_tokens = 0  # of the prompts that wait
        self.paces = Paces()
        self._paces_stamp = 0
        self.unseen_first_tokens = False  # some call in flight does not stream

    def wait(self, state: CallState) -> None:
        """Put a call into the queue, or renew its place, by `state.latest_start_s`."""
        if state.call.call_id in self.waiting:
            self.unwait(state)
        self.waiting[state.call.call_id] = state
        self.waiting_tokens += state.call.prompt_tokens
        state.queued_as = (state.latest_start_s, state.arrived_s, state.call.call_id)
        insort(self._order, state.queued_as)

    def unwait(self, state: CallState) -> None:
        del self.waiting[state.call.call_id]
        self.waiting_tokens -= state.call.prompt_tokens
        del self._order[bisect_left(self._order, state.queued_as)]

    def first(self, count: int) -> list[CallState]:
        """The waiting calls with the earliest latest starts."""
        return [self.waiting[call_id] for _, _, call_id in self._order[:count]]

    def add(self, worker: WorkerState, now_s: float) -> None:
        like = next((other for other in self.workers.values() if other.profile == worker.profile), worker)
        worker.profile = like.profile  # one object, so that prices of equal workers are seen to be equal
        self.workers[worker.name] = worker
        self.warmth.add_worker(worker.spec)
        self.refresh(now_s)

    def remove(self, name: str, now_s: float) -> WorkerState:
        worker = self.workers.pop(name)
        self.warmth.drop_worker(name)
        self.refresh(now_s)
        return worker

    def refresh(self, now_s: float) -> None:
        """Which workers take new calls, by name; since when there is none."""
        self.usable = [w for _, w in sorted(self.workers.items()) if w.status is WorkerStatus.UP]
        has_tiers = any(worker.spec.dram_tokens for worker in self.usable)
        self.tiers_tokens = sum(worker.tiers_tokens for worker in self.usable) if has_tiers else 0
        if self.usable:
            self.down_since_s = None
        elif self.down_since_s is None:
            self.down_since_s = now_s

    def refresh_beliefs(self, now_s: float) -> None:
        """Bring up to date what time and other workers' news change: unseen first tokens that were due, and speeds."""
        if self.unseen_first_tokens:
            for worker in self.workers.values():
                worker.pass_due(now_s)
            self.unseen_first_tokens = any(worker.due for worker in self.workers.values())
        if self._paces_stamp != self.paces.stamp:
            self._paces_stamp = self.paces.stamp
            for worker in self.usable:
                worker.refresh_paces()

    def check_invariants(self) -> None:
        for name, worker in self.workers.items():
            assert worker.name == name and worker.spec.pool == self.name
            worker.check_invariants()
        assert sorted(state.queued_as for state in self.waiting.values()) == self._order
        assert all(call_id == state.call.call_id for call_id, state in self.waiting.items())
        assert self.waiting_tokens == sum(state.call.prompt_tokens for state in self.waiting.values())
        self.warmth.check_invariants()

"""One model's workers, what is warm on them, and the calls that wait for one of them.

Each tenant's waiting calls are kept in order of the latest start they were last given, so that a look at the first few is
cheap however many wait. A call's place is renewed when it is looked at.
"""

from bisect import bisect_left, insort
from heapq import merge
from itertools import chain, islice, zip_longest

from amf.core.config import FabricConfig
from amf.core.state.pace import Paces
from amf.core.state.pipelines import CallState
from amf.core.state.shares import Shares
from amf.core.state.warmth import Warmth
from amf.core.state.workers import WorkerState, WorkerStatus

_Place = tuple[float, float, str]  # (latest start, arrival, call)


class Pool:
    def __init__(self, name: str, config: FabricConfig) -> None:
        self.name = name
        self.workers: dict[str, WorkerState] = {}
        self.warmth = Warmth(config)
        self.waiting: dict[str, CallState] = {}
        self.shares = Shares(config)
        self._order: dict[str, list[_Place]] = {}  # of every tenant with waiting calls
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
        call = state.call
        if call.call_id in self.waiting:
            self._drop(state)
        else:
            self.shares.arrive(call.tenant)
        self.waiting[call.call_id] = state
        self.waiting_tokens += call.prompt_tokens
        state.queued_as = (state.latest_start_s, state.arrived_s, call.call_id)
        insort(self._order.setdefault(call.tenant, []), state.queued_as)

    def unwait(self, state: CallState) -> None:
        self._drop(state)
        self.shares.leave(state.call.tenant)

    def first(self, count: int) -> list[CallState]:
        """The waiting calls with the earliest latest starts."""
        return [self.waiting[call_id] for _, _, call_id in islice(merge(*self._order.values()), count)]

    def first_of_each(self, count: int) -> list[CallState]:
        """So many waiting calls: the first of each tenant, then the second of each, and so on; the least served stands
        first. So none that has many calls hides those of the others."""
        if not self.shares.contended:
            return self.first(count)
        served = self.shares.served()
        tenants = sorted(self._order, key=lambda tenant: (served[tenant], tenant))
        rounds = zip_longest(*(self._order[tenant][:count] for tenant in tenants))
        places = (place for place in chain.from_iterable(rounds) if place is not None)
        return [self.waiting[call_id] for _, _, call_id in islice(places, count)]

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
        for tenant, order in self._order.items():
            own = [state.queued_as for state in self.waiting.values() if state.call.tenant == tenant]
            assert sorted(own) == order != []
        self.shares.check_invariants(state.call.tenant for state in self.waiting.values())
        assert sum(len(order) for order in self._order.values()) == len(self.waiting)
        assert all(call_id == state.call.call_id for call_id, state in self.waiting.items())
        assert self.waiting_tokens == sum(state.call.prompt_tokens for state in self.waiting.values())
        self.warmth.check_invariants()

    def _drop(self, state: CallState) -> None:
        call = state.call
        del self.waiting[call.call_id]
        self.waiting_tokens -= call.prompt_tokens
        order = self._order[call.tenant]
        del order[bisect_left(order, state.queued_as)]
        if not order:
            del self._order[call.tenant]

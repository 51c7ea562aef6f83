"""One model's workers, what is warm on them, and the calls that wait for one of them."""

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
        self.dispatched = 0
        self.down_since_s: float | None = None
        self.usable: list[WorkerState] = []
        self.paces = Paces()

    def add(self, worker: WorkerState, now_s: float) -> None:
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
        if self.usable:
            self.down_since_s = None
        elif self.down_since_s is None:
            self.down_since_s = now_s

    def check_invariants(self) -> None:
        for name, worker in self.workers.items():
            assert worker.name == name and worker.spec.pool == self.name
            worker.check_invariants()
        assert all(call_id == state.call.call_id for call_id, state in self.waiting.items())
        self.warmth.check_invariants()

"""Hand-made pipelines that speculate, and how to play them in each way."""

from collections.abc import Sequence

from amf.core.config import FabricConfig
from amf.core.decisions import Decision
from amf.core.events import BranchDecided, CallArrived, Event
from amf.core.fabric import Fabric
from amf.core.graph import GroupKind
from amf.core.policy.bundles import policies_named
from amf.core.types import Call, Worker
from amf.sim.in_turn import workload_in_turn
from amf.sim.loop import Simulation
from amf.sim.plan import AttemptPlan, CallPlan, GroupPlan, GuessPlan, PipelinePlan, PromptPlan, Workload
from amf.sim.report import CallRecord, RunRecords
from amf.sim.workload import SHARED_BLOCKS
from kit import PROFILE

WAYS = ("off", "unmanaged", "managed")
SIZE = 16


class Sketch:
    """Calls one by one; each prompt is a context that all share and a few blocks of its own."""

    def __init__(self, name: str = "g/0") -> None:
        self.name = name
        self.calls: list[CallPlan] = []
        self.groups: list[GroupPlan] = []
        self.guesses: list[GuessPlan] = []

    def call(self, hop: str, *parents: int, output: int = 20, gap_s: float = 0.0) -> int:
        index = len(self.calls)
        runs = ((SHARED_BLOCKS, 40), (SHARED_BLOCKS + 100 * (index + 1), 5))
        prompt = PromptPlan(namespace=self.name, block_tokens=SIZE, runs=runs, tail_tokens=3)
        made = CallPlan(
            index=index, hop=hop, pool="m", prompt=prompt, output_tokens=output, parents=parents, gap_s=gap_s
        )
        self.calls.append(made)
        return index

    def group(self, kind: GroupKind, attempts: Sequence[AttemptPlan], name: str = "try", k: int = 1) -> None:
        self.groups.append(GroupPlan(name=name, kind=kind, attempts=tuple(attempts), k=k))

    def guess(self, call: int, until: int, after: tuple[int, ...] = (), wrong: tuple[int, ...] = ()) -> None:
        plan = GuessPlan(name=f"next-{call}", calls=(call,), until=(until,), after=after, wrong=wrong, probability=0.5)
        self.guesses.append(plan)

    def plan(self) -> PipelinePlan:
        return PipelinePlan(
            pipeline_id=self.name,
            graph="g",
            calls=tuple(self.calls),
            declared=True,
            groups=tuple(self.groups),
            guesses=tuple(self.guesses),
            speculates=bool(self.groups or self.guesses),
        )


class Heard(Fabric):
    """A fabric that checks itself after every event and keeps what it was told."""

    def __init__(self, policy: str = "fabric-kill") -> None:
        super().__init__(FabricConfig(), policies_named(policy))
        self.calls: dict[str, Call] = {}
        self.decided: list[tuple[float, str, tuple[str, ...], tuple[str, ...]]] = []

    def handle(self, event: Event) -> list[Decision]:
        decisions = super().handle(event)
        self.check_invariants()
        if isinstance(event, CallArrived):
            self.calls[event.call.call_id] = event.call
        if isinstance(event, BranchDecided):
            self.decided.append((event.at_s, event.group, event.committed, event.discarded))
        return decisions


def play(
    way: str, plans: Sequence[PipelinePlan], fabric: Heard | None = None, workers: int = 2
) -> tuple[RunRecords, Heard]:
    fabric = fabric or Heard()
    workload = Workload(name="w", pipelines=tuple(plans))
    fleet = [Worker(name=f"m-{i}", pool="m", profile=PROFILE, kv_tokens=100_000) for i in range(workers)]
    workload = workload_in_turn(workload) if way == "off" else workload
    simulation = Simulation(fabric, fleet, workload, managed=way == "managed")
    records = simulation.run()
    for worker in simulation.workers.values():
        worker.check_invariants()
    return records, fabric


def by_hop(records: RunRecords) -> dict[str, CallRecord]:
    """The last call of each hop."""
    return {call.hop: call for call in records.calls}

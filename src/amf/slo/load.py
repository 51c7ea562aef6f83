"""The load at which a graph's own fleet still keeps an SLO: the simulator under the fabric, bisected.

Load 1 is the rate at which the busiest pool saturates by the cost model. One seed and a few hundred pipelines: good to two
digits at most, and a share that wavers with load is found wherever the bisection meets it.
"""

from dataclasses import dataclass
from pathlib import Path

from amf.sim.report import Report
from amf.sim.scenario import PoolSpec, Scenario, WorkloadSpec
from amf.sim.study import Case, play
from amf.simulate.progress import StudyProgress

LOW, HIGH, STEPS = 0.05, 1.5, 7
POLICY = "fabric"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """`share` of the pipelines, arriving at random times, are to meet `slo_s`."""

    graph: str
    fleet: tuple[PoolSpec, ...]
    slo_s: float
    share: float
    pipelines: int
    seed: int


def load_kept(asked: Asked) -> tuple[float | None, list[Report]]:
    """The highest load found, None if not even the lowest will do, and every run: its `load` and `met`."""
    runs: list[Report] = []
    with StudyProgress(STEPS, f"amf slo: runs {STEPS}, {asked.pipelines} pipelines each") as progress:

        def kept(load: float) -> bool:
            done = len(runs)
            scenario, case = _scenario(asked, load), Case(policy=POLICY, seed=asked.seed)
            report = play(scenario, case, lambda n, of: progress.moved([1.0] * done + [n / of])).report
            progress.finished(report, f"load {load:.3f}")
            runs.append({"load": load, "met": report["slo_attainment"]})
            return bool(report["slo_attainment"] >= asked.share)

        low, high = LOW, HIGH
        if not kept(low):
            return None, runs
        for _ in range(STEPS - 1):
            middle = (low + high) / 2
            low, high = (middle, high) if kept(middle) else (low, middle)
    return low, runs


def _scenario(asked: Asked, load: float) -> Scenario:
    spec = WorkloadSpec(
        kind="graph",
        graph=asked.graph,
        pipelines=asked.pipelines,
        load=load,
        slo_s=asked.slo_s,
        seed=asked.seed,
    )
    return Scenario(name=Path(asked.graph).stem, workload=spec, pools=asked.fleet)

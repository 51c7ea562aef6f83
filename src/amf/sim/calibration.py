"""Are the quantiles true that the fabric states of what remains of a pipeline?

Whenever a call is dispatched, the composition that budgets rest on (`core/state/paths.py`) is asked for the path from there
to the pipeline's end: this call from dispatch to its end, and the gaps and calls that follow on the longest way. When the
run is over the same is reckoned from what happened: a call's service is from its dispatch to its end, a gap is the plan's,
and the longest way counts; nowhere is the time in it that calls waited in our queues, which nobody can state without knowing
what the load will be. A stated p90 is calibrated if 90 % of the paths turn out no longer than it.

Counted are calls of completed pipelines that do not speculate, for which every hop that may follow has been seen
`min_evidence` times at its position; the others are `cold`. The `budget_quantile` (p90) is as it is stated, corrected by what
became of earlier statements (`core/state/hindsight.py`); nobody is told the other quantiles, and they are as they are
composed. A later round of a loop counts like its first. `p90_known` is the share within p90 where each of those hops has been
seen 100 times."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from amf.core.config import FabricConfig
from amf.core.decisions import Dispatch
from amf.core.fabric import Fabric
from amf.core.graph import CallGraph
from amf.core.path import HopTime, PathTimes, Samples
from amf.core.state.paths import Paths, Remaining
from amf.core.state.profiles import Profiles
from amf.sim.plan import PipelinePlan, Workload
from amf.sim.report import RunRecords

STATED = {"p10": 0.1, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p90": 0.9, "p95": 0.95, "p99": 0.99}
MUCH_EVIDENCE = 100.0
_P90 = [*STATED].index("p90")


@dataclass(frozen=True, slots=True)
class _Said:
    at_s: float
    quantiles_s: Sequence[float]  # in the order of STATED; empty: cold
    evidence: float


class _Kept(Paths):
    """Whose last composition of each graph can be asked for more."""

    def __init__(self, config: FabricConfig, profiles: Profiles) -> None:
        super().__init__(config, profiles.hop_time, profiles.seen)
        self.last: dict[str, tuple[Mapping[str, HopTime], PathTimes]] = {}

    def compose(self, graph: CallGraph, times: Mapping[str, HopTime]) -> PathTimes:
        composed = super().compose(graph, times)
        self.last[graph.name] = times, composed
        return composed


class Calibration:
    """Of one run. `profiles` are those its fabric asks, from the start."""

    def __init__(self, config: FabricConfig, profiles: Profiles) -> None:
        self._least, self._quantile = config.min_evidence, config.budget_quantile
        self._paths = profiles.paths = _Kept(config, profiles)
        self._said: dict[str, _Said] = {}  # by call
        self._stated: dict[tuple[str, str], tuple[Remaining, Sequence[float]]] = {}

    def dispatched(self, fabric: Fabric, decision: Dispatch, at_s: float) -> None:
        """Note what is stated of the path from this dispatch on. A later attempt takes the place of an earlier one."""
        state = fabric.book.pipelines.call(decision.call_id)
        pipeline = fabric.book.pipelines.get(state.call.run_id) if state else None
        if state is None or pipeline is None or pipeline.graph is None or state.call.hop not in pipeline.graph.by_name:
            return
        remaining = self._paths.remaining(pipeline.graph)
        evidence = remaining.evidence[state.call.hop]
        quantiles_s: Sequence[float] = ()
        if evidence >= self._least:
            factors = {self._quantile: self._paths.factor(pipeline.graph.name)}
            composed_s = zip(STATED.values(), self._quantiles_s(remaining, state.call.hop), strict=True)
            quantiles_s = [each_s * factors.get(q, 1.0) for q, each_s in composed_s]
        self._said[decision.call_id] = _Said(at_s, quantiles_s, evidence)

    def report(self, workload: Workload, records: RunRecords) -> dict[str, Any]:
        """Shares of paths within each stated quantile (null if none was stated), and how many were stated on how much."""
        done = {each.pipeline for each in records.pipelines if each.status == "completed"}
        ends_s = {f"{call.pipeline}/{call.index}": call.end_s for call in records.calls}
        plans = [plan for plan in workload.pipelines if plan.pipeline_id in done and not plan.speculates]
        every = [each for plan in plans for each in self._held_against(plan, ends_s)]
        stated = [(said, took_s) for said, took_s in every if said.quantiles_s]
        shares = {
            name: fmean(took_s <= said.quantiles_s[place] for said, took_s in stated) if stated else None
            for place, name in enumerate(STATED)
        }
        known = [took_s <= said.quantiles_s[_P90] for said, took_s in stated if said.evidence >= MUCH_EVIDENCE]
        return {
            **shares,
            "p90_known": fmean(known) if known else None,
            "predictions": len(stated),
            "cold": len(every) - len(stated),
            "evidence": fmean(said.evidence for said, _ in stated) if stated else None,
        }

    def _quantiles_s(self, remaining: Remaining, hop: str) -> Sequence[float]:
        """Computed once for each composition. The gap before the hop is over."""
        key = remaining.graph.name, hop
        as_of, quantiles_s = self._stated.get(key, (None, ()))
        if as_of is not remaining:
            times, composed = self._paths.last[remaining.graph.name]
            since: Samples = composed.since(hop)
            quantiles_s = [since.quantile(q) - times[hop].gap_s for q in STATED.values()]
            self._stated[key] = remaining, quantiles_s
        return quantiles_s

    def _held_against(self, plan: PipelinePlan, ends_s: Mapping[str, float]) -> Iterator[tuple[_Said, float]]:
        """What was said of each call's path, and the seconds that this took without our queues."""
        after_s = [0.0] * len(plan.calls)
        for call in reversed(plan.calls):
            call_id = f"{plan.pipeline_id}/{call.index}"
            said = self._said.get(call_id)
            if said is None:
                continue
            took_s = ends_s[call_id] - said.at_s + after_s[call.index]
            for parent in call.parents:
                after_s[parent] = max(after_s[parent], call.gap_s + took_s)
            yield said, took_s

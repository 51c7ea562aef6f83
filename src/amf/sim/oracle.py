"""What a policy would predict if it knew the plan: true lengths, the true rest of the graph, and when a context is used again.

For the ablation `fabric-clairvoyant` only: it tells a want of information from a weak algorithm. Not even an oracle knows
what the load will be, since the policy that asks decides it; so seconds are those of each call alone in its pool, times what
calls of this pool have taken longer than alone so far. What is asked of a pool as a whole (its mean service, the price of a
resident) is learned as ever, save that whoever is expected back does come back.

A context is protected until its next use, exactly, if that is within its worth (the break-even time), and else not at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from amf.core.config import FabricConfig
from amf.core.state.mean import Mean
from amf.core.state.profiles import Profiles
from amf.core.types import Call, Worker
from amf.sim.plan import CallPlan, PipelinePlan, Workload
from amf.sim.workload.timing import calls_alone_s

_MARGIN_S = 1e-3  # a look at the very moment of a return comes before the return


@dataclass(frozen=True, slots=True)
class _Path:
    """Seconds of the longest way to a pipeline's end: gaps, and calls alone by pool."""

    gaps_s: float
    calls_s: dict[str, float]

    @property
    def total_s(self) -> float:
        return self.gaps_s + sum(self.calls_s.values())


class _Truth:
    """One pipeline's plan with its calls' seconds alone."""

    def __init__(self, plan: PipelinePlan, alone_s: Sequence[float]) -> None:
        self.calls = plan.calls
        self.alone_s = alone_s
        self.children: list[list[CallPlan]] = [[] for _ in plan.calls]
        for call in plan.calls:
            for parent in call.parents:
                self.children[parent].append(call)
        self.after: dict[int, _Path] = {}
        for call in reversed(plan.calls):
            ways = [self._through(child) for child in self.children[call.index]]
            self.after[call.index] = max(ways, key=lambda way: way.total_s, default=_Path(0.0, {}))

    def _through(self, child: CallPlan) -> _Path:
        rest = self.after[child.index]
        own_s = rest.calls_s.get(child.pool, 0.0) + self.alone_s[child.index]
        return _Path(rest.gaps_s + child.gap_s, {**rest.calls_s, child.pool: own_s})


class Oracle(Profiles):
    def __init__(self, config: FabricConfig, workload: Workload, workers: Sequence[Worker]) -> None:
        """Knows the calls of this workload and of no other (KeyError). `workers`: the fleet; a pool's are taken as equal."""
        super().__init__(config)
        profiles = {worker.pool: worker.profile for worker in workers}
        self._truths = {plan.pipeline_id: _Truth(plan, calls_alone_s(plan, profiles)) for plan in workload.pipelines}
        self._dilations = {pool: Mean(1.0) for pool in profiles}

    def observe_call(self, call: Call, output_tokens: int, service_s: float, growth_tokens: int | None = None) -> None:
        super().observe_call(call, output_tokens, service_s, growth_tokens)
        truth, index = self._found(call)
        if truth.alone_s[index] > 0.0:
            self._dilations[call.pool].observe(service_s / truth.alone_s[index])

    def expected_output_tokens(self, call: Call) -> float:
        truth, index = self._found(call)
        return truth.calls[index].output_tokens

    def expected_service_s(self, call: Call) -> float:
        truth, index = self._found(call)
        return self._service_s(truth, index)

    def expected_after_s(self, call: Call, by_graph_s: float) -> float:
        truth, index = self._found(call)
        path = truth.after[index]
        return path.gaps_s + sum(alone_s * self._dilations[pool].value for pool, alone_s in path.calls_s.items())

    def return_odds(self, pool: str) -> float:
        """Of those that count as residents: they are the ones that do come back."""
        return 1.0

    def protection_s(self, call: Call, worth_s: float) -> float:
        back_s = self.return_s(call)
        return back_s + _MARGIN_S if back_s <= worth_s else 0.0

    def residence_s(self, call: Call) -> float:
        back_s = self.return_s(call)
        return back_s + _MARGIN_S if back_s < inf else 0.0

    def return_s(self, call: Call) -> float:
        """Seconds from this call's end until a later one that depends on it reaches the same pool as the same client;
        infinite if none will."""
        truth, index = self._found(call)
        own, back_s, ends_s = truth.calls[index], inf, {index: 0.0}
        for child in truth.calls[index + 1 :]:
            known = [ends_s[parent] for parent in child.parents if parent in ends_s]
            if not known:
                continue
            start_s = max(known) + child.gap_s
            ends_s[child.index] = start_s + self._service_s(truth, child.index)
            if (child.pool, child.lane) == (own.pool, own.lane):
                back_s = min(back_s, start_s)
                if len(truth.children[index]) == 1 and child.parents == (index,):
                    break  # nothing else follows sooner
        return back_s

    def _service_s(self, truth: _Truth, index: int) -> float:
        return truth.alone_s[index] * self._dilations[truth.calls[index].pool].value

    def _found(self, call: Call) -> tuple[_Truth, int]:
        pipeline_id, _, index = call.call_id.rpartition("/")
        return self._truths[pipeline_id], int(index)

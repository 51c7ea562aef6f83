"""What recordings of live traffic have in common: pipelines of calls with prompts in blocks, as they were observed.

Who waited for whom is not always recorded. A call then waits for all that had ended when it began, except what those
waited for: the shape is the densest that the times allow. The gap before a call is the time from the end of the last it
waits for to its start; whether a tool or a human filled it is not known, so all gaps are cut at `think_cap_s`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from amf.core.types import CallKind
from amf.sim.plan import CallPlan, PipelinePlan, PromptPlan
from amf.sim.workload.blocks import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedCall:
    """`parents` are indices into the pipeline's calls. `took_s`: from its arrival to its end; 0 where that is not read."""

    hop: str
    model: str
    runs: tuple[Run, ...]
    tail_tokens: int
    prompt_tokens: int
    output_tokens: int
    parents: tuple[int, ...] = ()
    gap_s: float = 0.0
    took_s: float = 0.0
    kind: CallKind = CallKind.GENERATE

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedPipeline:
    """`arrival_s` since the recording's start; `slo_s` is the recorded deadline after the arrival, if there was one."""

    name: str
    graph: str
    calls: tuple[ObservedCall, ...]
    arrival_s: float
    slo_s: float | None = None
    declared: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """A recording: pipelines in order of arrival, which share prefixes with each other as recorded."""

    source: str
    block_tokens: int
    pipelines: tuple[ObservedPipeline, ...]
    notes: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(call.model for each in self.pipelines for call in each.calls))


def traffic_pipeline(traffic: Traffic, seen: ObservedPipeline, again: int, pools: Mapping[str, str]) -> PipelinePlan:
    """The `again`-th repetition of an observed pipeline. Each repetition has content of its own, which its pipelines share
    as the recorded ones did."""
    namespace = f"{traffic.source}/{again}"
    calls = tuple(
        CallPlan(
            index=index,
            hop=call.hop,
            pool=pools[call.model],
            prompt=PromptPlan(
                namespace=namespace, block_tokens=traffic.block_tokens, runs=call.runs, tail_tokens=call.tail_tokens
            ),
            output_tokens=call.output_tokens,
            parents=call.parents,
            gap_s=call.gap_s,
            kind=call.kind,
        )
        for index, call in enumerate(seen.calls)
    )
    return PipelinePlan(
        pipeline_id=f"{traffic.source}/{seen.name}/{again}",
        graph=seen.graph or traffic.source,
        calls=calls,
        arrival_s=seen.arrival_s,
        slo_s=seen.slo_s,
        declared=seen.declared,
    )


class Ancestry:
    """Which call came before which, as calls are added in order of their start."""

    def __init__(self) -> None:
        self._before: list[int] = []  # a bit for each earlier call that this one waits for, however indirectly

    def add(self, parents: Iterable[int]) -> None:
        mask = 0
        for parent in parents:
            mask |= self._before[parent] | 1 << parent
        self._before.append(mask)

    def latest(self, calls: Sequence[int]) -> tuple[int, ...]:
        """Those of `calls` that no other of them waits for."""
        covered = 0
        for call in calls:
            covered |= self._before[call]
        return tuple(sorted(call for call in set(calls) if not covered >> call & 1))


def gap_s(start_s: float, ends_s: Iterable[float], cap_s: float) -> float:
    """Seconds between the last end and the start, cut at `cap_s`; none if the call did not wait for it to end."""
    return min(cap_s, max(0.0, start_s - max(ends_s)))

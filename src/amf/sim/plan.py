"""What a workload is: pipelines to run, each a small DAG of calls whose prompts are runs of block ids.

A plan says what will happen if nothing delays it; the driver (virtual or HTTP) decides when. Prompts carry no text: block
ids are turned into text with exactly this sharing by `amf.bench.text`, or into block keys by the simulator.
"""

from dataclasses import dataclass, field

from amf.core.graph import CallGraph
from amf.core.types import CallKind


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptPlan:
    """A prompt as runs of consecutive block ids: `runs` = ((first_id, count), ...), each block `block_tokens` long, then
    `tail_tokens` (< block_tokens) that nobody shares. Two prompts of the same `namespace` share a prefix exactly as far
    as their block ids agree from the start."""

    namespace: str
    block_tokens: int
    runs: tuple[tuple[int, int], ...]
    tail_tokens: int = 0

    @property
    def blocks(self) -> int:
        return sum(count for _, count in self.runs)

    @property
    def total_tokens(self) -> int:
        return self.blocks * self.block_tokens + self.tail_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPlan:
    """One hop to execute. It becomes ready when all `parents` (indices into the pipeline's calls) have finished, plus
    `gap_s` (tool or think time; for a call without parents, after the pipeline's start)."""

    index: int
    hop: str
    pool: str
    prompt: PromptPlan
    output_tokens: int
    parents: tuple[int, ...] = ()
    gap_s: float = 0.0
    kind: CallKind = CallKind.GENERATE
    lane: str = ""  # sub-agent lane within the pipeline; "" = main


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelinePlan:
    """One pipeline. `arrival_s` is set for open-loop workloads; None means "as soon as a place is free" (closed loop).
    `slo_s` is the end-to-end deadline relative to the start, or None. `declared`: send graph, hop and parents explicitly
    (a declared or framework pipeline); False: send nothing, as a plain client would. `tenant`: whose it is."""

    pipeline_id: str
    graph: str
    calls: tuple[CallPlan, ...]
    arrival_s: float | None = None
    slo_s: float | None = None
    declared: bool = False
    standalone_s: float | None = None
    tenant: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Pipelines in order of start, and how many are live at once (closed loop; None for open loop)."""

    name: str
    pipelines: tuple[PipelinePlan, ...]
    concurrency: int | None = None
    seed: int = 0
    graphs: tuple[CallGraph, ...] = ()  # what clients of declared pipelines would declare
    notes: tuple[str, ...] = field(default=())

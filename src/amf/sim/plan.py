"""What a workload is: pipelines to run, each a small DAG of calls whose prompts are runs of block ids.

A plan says what will happen if nothing delays it; the driver (virtual or HTTP) decides when. Prompts carry no text: block
ids are turned into text with exactly this sharing by `amf.bench.text`, or into block keys by the simulator.

A pipeline may have *groups* of attempts, of which one (or k) is wanted in the end, and *guesses* at calls whose parents have
not answered yet. What each of them would come to is drawn with the plan, whoever plays it and however: `sim/in_turn.py` makes
of it what a client does that never speculates, `sim/live_branches.py` plays it with all at once. To allow for that, what comes
after a group reads a fresh text of the length that the first successful attempt's answer has, and not the winner's own blocks.
"""

from dataclasses import dataclass, field

from amf.core.graph import CallGraph, GroupKind
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
class AttemptPlan:
    """One alternative: `calls` (indices), one after the other; then the client takes `test_s` to find out whether it
    `succeeds`. `probability`: that it does, for all the client knows. `score`: the highest is the best of those that do not."""

    calls: tuple[int, ...]
    succeeds: bool
    test_s: float = 0.0
    probability: float | None = None
    score: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPlan:
    """Attempts at the same thing; `k` successes are wanted (1 but in a quorum). All first calls have the same parents, and the
    last calls of all attempts are parents of what comes after. Attempts are tested side by side, but for best_of: there one
    judge takes them in the order in which they finish, and if none is good enough the best is taken. In the other kinds the
    pipeline goes on without."""

    name: str
    kind: GroupKind
    attempts: tuple[AttemptPlan, ...]
    k: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class GuessPlan:
    """What comes next is guessed before it is known: `calls` (indices of parallel calls) have the parents `until`, and their
    prompts may be sent, on a guess, once all of `after` have finished. Where the guess is wrong, `wrong` are the calls that it
    sends instead, for nothing; empty: it is right. Neither `after` nor `until` are in a group."""

    name: str
    calls: tuple[int, ...]
    until: tuple[int, ...]
    after: tuple[int, ...] = ()
    wrong: tuple[int, ...] = ()
    probability: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelinePlan:
    """One pipeline. `arrival_s` is set for open-loop workloads; None means "as soon as a place is free" (closed loop). `slo_s`
    is the end-to-end deadline relative to the start, or None. `declared`: send graph, hop and parents explicitly (a declared
    or framework pipeline); False: send nothing, as a plain client would. `tenant`: whose it is. `speculates`: it has groups or
    guesses, or had them before somebody decided to do one thing after the other; `unused`: calls of which it is known then
    that nobody uses their work."""

    pipeline_id: str
    graph: str
    calls: tuple[CallPlan, ...]
    arrival_s: float | None = None
    slo_s: float | None = None
    declared: bool = False
    standalone_s: float | None = None
    tenant: str = ""
    groups: tuple[GroupPlan, ...] = ()
    guesses: tuple[GuessPlan, ...] = ()
    speculates: bool = False
    unused: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Pipelines in order of start, and how many are live at once (closed loop; None for open loop). `graphs`: what clients of
    declared pipelines would declare; `graphs_in_turn`: what they would declare instead of those of the same names if they did
    one thing after the other."""

    name: str
    pipelines: tuple[PipelinePlan, ...]
    concurrency: int | None = None
    seed: int = 0
    graphs: tuple[CallGraph, ...] = ()
    graphs_in_turn: tuple[CallGraph, ...] = ()
    notes: tuple[str, ...] = field(default=())

"""Several workloads in one: each pipeline's part is drawn by the shares, then each part draws its own.

An engine has one block length, so all prompts of a mix get blocks of MIX_BLOCK_TOKENS. Longer blocks are cut into equal
pieces, which are shared exactly as the whole was. Block ids of one part mean nothing in another: names tell them apart,
but for the static text of a graph that two parts have in common.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from random import Random

from amf.sim.plan import CallPlan, PipelinePlan, PromptPlan
from amf.sim.scenario import ScenarioError, WorkloadSpec
from amf.sim.scenario_checks import part_workload
from amf.sim.workload.blocks import SHARED_BLOCKS, Run, merged, owned_runs
from amf.sim.workload.kinds import Drawn

MIX_BLOCK_TOKENS = 64
_TAIL_IDS, _TAIL_ROOM = 1 << 40, 1 << 12  # far above any id that is given out; ids for each prompt


@dataclass(frozen=True, slots=True)
class Part:
    """A workload of its own, the places of its pipelines in the order of all, and whose they are."""

    spec: WorkloadSpec
    places: tuple[int, ...]
    tenant: str = ""


def parts_of(spec: WorkloadSpec, rng: Random) -> list[Part]:
    """The parts that were drawn at least once, each asked for as many pipelines as it was drawn."""
    entries = spec.mix or ()
    chosen = rng.choices(range(len(entries)), [entry.share for entry in entries], k=spec.pipelines)
    parts: list[Part] = []
    for number, entry in enumerate(entries):
        places = tuple(place for place, part in enumerate(chosen) if part == number)
        if places:
            parts.append(Part(replace(part_workload(spec, entry), pipelines=len(places)), places, entry.tenant))
    return parts


def blended(parts: Sequence[Part], drawn: Sequence[Drawn]) -> Drawn:
    """All pipelines in one order. A recording that has fewer than were drawn leaves its last places empty."""
    plans: list[tuple[int, PipelinePlan]] = []
    serial = count()
    for number, (part, own) in enumerate(zip(parts, drawn, strict=True), start=1):
        renamed = [replace(_own(plan, number, serial), tenant=part.tenant) for plan in own.pipelines]
        plans += zip(part.places, renamed, strict=False)
    counts = [f"{len(own.pipelines)} of {own.name}" for own in drawn]
    notes = [f"a mix: {', '.join(counts)}"]
    notes += [f"{own.name}: {note}" for own in drawn for note in own.notes]
    graphs = {graph.name: graph for own in drawn for graph in own.graphs}
    in_turn = {graph.name: graph for own in drawn for graph in own.graphs_in_turn}
    repeated = [name for name, times in Counter(own.name for own in drawn).items() if times > 1]
    if any(len({own.graphs for own in drawn if own.name == name}) > 1 for name in repeated):
        raise ScenarioError(f"[[workload.mix]] has different graphs named {', '.join(repeated)}; rename one")
    ordered = tuple(plan for _, plan in sorted(plans, key=lambda each: each[0]))
    return Drawn("mix", ordered, tuple(notes), tuple(graphs.values()), tuple(in_turn.values()))


def _own(plan: PipelinePlan, part: int, serial: Iterator[int]) -> PipelinePlan:
    """The plan with ids that no other part has, in blocks of the common length."""
    graph, _, rest = plan.pipeline_id.partition("/")
    calls: list[CallPlan] = []
    for call in plan.calls:
        prompt = _reblocked(call.prompt, _TAIL_IDS + next(serial) * _TAIL_ROOM, graph)
        owner, _, whose = prompt.namespace.partition("/")
        calls.append(replace(call, prompt=replace(prompt, namespace=f"{owner}/{part}/{whose}")))
    return replace(plan, pipeline_id=f"{graph}/{part}/{rest}", calls=tuple(calls))


def _reblocked(prompt: PromptPlan, first_free: int, source: str) -> PromptPlan:
    """Each block cut into pieces; whole pieces of the tail become blocks from `first_free` on, which nobody else has."""
    pieces, left = divmod(prompt.block_tokens, MIX_BLOCK_TOKENS)
    if left or not pieces:
        raise ScenarioError(
            f"[[workload.mix]] {source} has blocks of {prompt.block_tokens} tokens, which do not divide into "
            f"{MIX_BLOCK_TOKENS}; run it on its own"
        )
    if pieces == 1:
        return prompt
    runs: list[Run] = []
    for _, first, blocks in owned_runs(prompt):
        base = SHARED_BLOCKS if first >= SHARED_BLOCKS else 0
        runs.append((base + (first - base) * pieces, blocks * pieces))
    own, tail_tokens = divmod(prompt.tail_tokens, MIX_BLOCK_TOKENS)
    return replace(
        prompt, block_tokens=MIX_BLOCK_TOKENS, runs=merged((*runs, (first_free, own))), tail_tokens=tail_tokens
    )

"""A plan without speculation: attempts one after another until as many succeed as are wanted, and no guesses.

What comes out is a plain plan: a failed attempt is a call in the chain, its test is the gap before what comes next, and what
would have come after all attempts comes after the last that is made. Outcomes, lengths and prompts are those of the plan, so
that a client that speculates meets the same luck. Deadlines, loads and times alone of pipelines that speculate are those of
this form.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from amf.core.graph import GroupKind
from amf.sim.plan import AttemptPlan, CallPlan, GroupPlan, PipelinePlan, Workload


@dataclass(slots=True)
class _Made:
    """What is made of a plan's groups. `waits`: of a call for others instead of its parents; `gaps_s`: besides its own."""

    left_out: set[int]
    unused: frozenset[int]
    stands_for: dict[int, int] = field(default_factory=dict)  # the last call of an attempt -> that of the last one made
    waits: dict[int, tuple[int, ...]] = field(default_factory=dict)
    gaps_s: dict[int, float] = field(default_factory=dict)


def in_turn(plan: PipelinePlan) -> PipelinePlan:
    """The plan if it has neither groups nor guesses."""
    if not plan.groups and not plan.guesses:
        return plan
    made = _Made(left_out={call for guess in plan.guesses for call in guess.wrong}, unused=in_vain(plan))
    for group in plan.groups:
        _make(group, plan, made)
    kept = [call for call in plan.calls if call.index not in made.left_out]
    place = {call.index: index for index, call in enumerate(kept)}
    return replace(
        plan,
        calls=tuple(_moved(call, place, made) for call in kept),
        groups=(),
        guesses=(),
        unused=tuple(sorted(place[call] for call in made.unused)),
    )


def workload_in_turn(workload: Workload) -> Workload:
    """The same pipelines, one thing after the other in each; the same workload, if no pipeline speculates."""
    if not any(plan.speculates for plan in workload.pipelines):
        return workload
    graphs = {graph.name: graph for graph in (*workload.graphs, *workload.graphs_in_turn)}
    plans = tuple(in_turn(plan) for plan in workload.pipelines)
    return replace(workload, pipelines=plans, graphs=tuple(graphs.values()), graphs_in_turn=())


def tried(group: GroupPlan) -> list[AttemptPlan]:
    """The attempts that are made one after another: up to the last success that is wanted."""
    missing, made = group.k, list[AttemptPlan]()
    for attempt in group.attempts:
        made.append(attempt)
        missing -= attempt.succeeds
        if not missing:
            break
    return made


def used(group: GroupPlan, made: Iterable[AttemptPlan]) -> list[AttemptPlan]:
    """Whose work is used, of those that were made: the successes; of a best_of without any, the best."""
    made = list(made)
    good = [attempt for attempt in made if attempt.succeeds]
    if not good and group.kind is GroupKind.BEST_OF:
        return [max(made, key=lambda attempt: attempt.score)]
    return good[: group.k]


def in_vain(plan: PipelinePlan) -> frozenset[int]:
    """Calls (indices in this plan) that are made one after another, and whose work nobody uses then either."""
    return frozenset(
        call
        for group in plan.groups
        for attempt in tried(group)
        if not any(attempt is each for each in used(group, tried(group)))
        for call in attempt.calls
    )


def _make(group: GroupPlan, plan: PipelinePlan, made: _Made) -> None:
    attempts = tried(group)
    last = attempts[-1].calls[-1]
    before: AttemptPlan | None = None
    for attempt in group.attempts:
        made.stands_for[attempt.calls[-1]] = last
        if not any(attempt is each for each in attempts):
            made.left_out.update(attempt.calls)
            continue
        if before is not None:
            made.waits[attempt.calls[0]] = (before.calls[-1],)
            made.gaps_s[attempt.calls[0]] = before.test_s
        before = attempt
    inside = {call for attempt in group.attempts for call in attempt.calls}
    for call in plan.calls:
        if call.index not in inside and not inside.isdisjoint(call.parents):
            made.gaps_s[call.index] = max(made.gaps_s.get(call.index, 0.0), attempts[-1].test_s)


def _moved(call: CallPlan, place: dict[int, int], made: _Made) -> CallPlan:
    parents = made.waits.get(call.index, call.parents)
    if call.index not in made.waits:
        parents = tuple(made.stands_for.get(parent, parent) for parent in parents)
    return replace(
        call,
        index=place[call.index],
        parents=tuple(sorted({place[parent] for parent in parents})),
        gap_s=call.gap_s + made.gaps_s.get(call.index, 0.0),
    )

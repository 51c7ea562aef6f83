"""Built-in graphs that speculate: first-success, best-of, predicted, tree-early.

Synthetic, as `chains.py` explains. What each attempt comes to and which guess is right is drawn with the pipeline
(`sim/plan.py`); what clients do about it is the scenario's choice. Attempts share a context of 20 K tokens. Odds, tests (4 s),
judge (1.5 s) and the chance of the provisional best (0.5) are of our choice; the number of attempts, or the odds of a guess in
per cent, is in the name.
"""

from itertools import pairwise

from amf.core.graph import BranchGroup, Edge, GroupKind
from amf.sim.plan import AttemptPlan, GroupPlan, GuessPlan
from amf.sim.workload.draft import Draft, Reply, Shape
from amf.sim.workload.draws import LogNormal
from amf.sim.workload.fans import EXPANSIONS, LEVELS, SHORT, TREE, tree_edges
from amf.sim.workload.template import LARGE, MEDIUM, Template, chain, fan, fleet, join, numbered

# first-success and best-of: a plan, attempts on one context, and what is made of the one that is taken.
LEAD = {
    "plan": Shape(pool=LARGE, static="lead", own=SHORT, output=LogNormal(300, 0.4, low=16)),
    "finish": Shape(pool=LARGE, static="lead", own=SHORT, output=LogNormal(200, 0.4, low=8)),
}
ATTEMPT = Shape(pool=MEDIUM, static="attempt", own=SHORT, output=LogNormal(700, 0.7, low=32))
CONTEXT = LogNormal(20_000, 0.5, low=2_000, high=80_000)
TESTS = {GroupKind.FIRST_SUCCESS: LogNormal(4.0, 0.3), GroupKind.BEST_OF: LogNormal(1.5, 0.3)}  # seconds

# predicted: five steps on two models in turn, each reading all that was said; the next step is guessed while one runs.
STEPS = 5
PREDICTED = {
    hop: Shape(
        pool=LARGE if number % 2 == 0 else MEDIUM,
        static="even" if number % 2 == 0 else "odd",
        own=SHORT,
        output=LogNormal(400, 0.5, low=32),
    )
    for number, hop in enumerate(numbered("step", STEPS))
}
PROVISIONAL = 0.5  # that the first expansion of a level is the best


def _attempts(kind: GroupKind, count: int, probability: float) -> Template:
    hops = numbered("attempt", count)

    def draw(draft: Draft) -> None:
        context = draft.text(CONTEXT)
        plan = draft.ask("plan", LEAD["plan"], draft.thread("lead").read(context))
        replies = draft.ask_each("attempt", ATTEMPT, draft.thread("attempt").read(context, plan.text), count, [plan])
        attempts = [
            AttemptPlan(
                calls=(reply.index,),
                succeeds=draft.chance(probability),
                test_s=TESTS[kind].draw(draft.rng),
                probability=probability,
                score=draft.rng.random(),
            )
            for reply in replies
        ]
        draft.groups.append(GroupPlan(name="attempts", kind=kind, attempts=tuple(attempts)))
        taken = next((reply for reply, each in zip(replies, attempts, strict=True) if each.succeeds), replies[-1])
        draft.ask("finish", LEAD["finish"], plan.thread.read(draft.like(taken)), replies)

    in_turn = [Edge(source="plan", target=hops[0]), Edge(source=hops[-1], target="finish")]
    for one, other in pairwise(hops):
        in_turn.append(Edge(source=one, target=other, probability=1 - probability))
        in_turn.append(Edge(source=one, target="finish", probability=probability))
    declared = (probability,) * count if kind is GroupKind.FIRST_SUCCESS else ()
    name = kind.value.replace("_", "-")
    return Template(
        name=f"{name}-{count}",
        about=f"{count} attempts on a 20 K context, each good with {probability:g}",
        shapes={"plan": LEAD["plan"], **dict.fromkeys(hops, ATTEMPT), "finish": LEAD["finish"]},
        statics={"lead": 1_500, "attempt": 1_500},
        edges=(*fan("plan", hops), *join(hops, "finish")),
        fleet=fleet(large=2, medium=3),
        draw=draw,
        groups=(BranchGroup(name="attempts", kind=kind, alternatives=hops, probabilities=declared),),
        edges_in_turn=tuple(in_turn),
    )


def _predicted(probability: float) -> Template:
    hops = tuple(PREDICTED)

    def draw(draft: Draft) -> None:
        task = draft.text(LogNormal(4_000, 0.6, low=256, high=30_000))
        threads = {shape.static: draft.thread(shape.static).read(task) for shape in PREDICTED.values()}
        said: list[Reply] = []
        for number, hop in enumerate(hops):
            shape, last = PREDICTED[hop], said[-1:]
            before = threads[shape.static]  # all but what the last step said
            step = draft.ask(hop, shape, before.read(*(reply.text for reply in last)), last)
            threads[shape.static] = step.thread
            if last:
                wrong: tuple[int, ...] = ()
                if not draft.chance(probability):
                    wrong = (draft.ask(hop, shape, before.read(draft.like(last[0])), last).index,)
                guess = GuessPlan(
                    name=f"next-{number + 1}",
                    calls=(step.index,),
                    until=(last[0].index,),
                    after=tuple(reply.index for reply in said[-2:-1]),
                    wrong=wrong,
                    probability=probability,
                )
                draft.guesses.append(guess)
            said.append(step)

    return Template(
        name=f"predicted-{probability * 100:.0f}",
        about=f"five steps on two models in turn, the next one guessed and right with {probability:g}",
        shapes=PREDICTED,
        statics={"even": 1_200, "odd": 1_200},
        edges=chain(*hops),
        fleet=fleet(large=3, medium=2),
        draw=draw,
        groups=tuple(
            BranchGroup(
                name=f"next-{number}", kind=GroupKind.PREDICTED, alternatives=(hop,), probabilities=(probability,)
            )
            for number, hop in enumerate(hops[1:], start=2)
        ),
        edges_in_turn=chain(*hops),
    )


def _tree(draft: Draft) -> None:
    problem = draft.text(LogNormal(3_000, 0.6, low=256, high=30_000))
    thread, after = draft.thread("expand").read(problem), list[Reply]()
    first: Reply | None = None  # of the level before, which is its best for all that is known until it is scored
    right = False
    for level in range(1, LEVELS + 1):
        shape = TREE["expand1-1"]
        options = draft.ask_each(f"expand{level}", shape, thread, EXPANSIONS, after)
        if first is not None:
            wrong = [] if right else draft.ask_each(f"expand{level}", shape, first.thread, EXPANSIONS, after)
            guess = GuessPlan(
                name=f"level-{level}",
                calls=tuple(option.index for option in options),
                until=(after[0].index,),
                after=(first.index,),
                wrong=tuple(option.index for option in wrong),
                probability=PROVISIONAL,
            )
            draft.guesses.append(guess)
        judged = draft.thread("score").read(problem, *(option.text for option in options))
        after = [draft.ask(f"score-{level}", TREE["score-1"], judged, options)]
        first, right = options[0], draft.chance(PROVISIONAL)
        thread = first.thread if right else draft.rng.choice(options[1:]).thread


SPECULATING = (
    _attempts(GroupKind.FIRST_SUCCESS, 3, 0.5),
    _attempts(GroupKind.FIRST_SUCCESS, 8, 0.3),
    _attempts(GroupKind.BEST_OF, 3, 0.4),
    _attempts(GroupKind.BEST_OF, 8, 0.24),
    *(_predicted(probability) for probability in (0.3, 0.6, 0.9)),
    Template(
        name="tree-early",
        about="tree-search whose next level starts on the provisional best, right with 0.5",
        shapes=TREE,
        statics={"expand": 1_200, "score": 800},
        edges=tree_edges(),
        fleet=fleet(large=4, small=1),
        draw=_tree,
    ),
)

"""Built-in graphs that fan out: dag-4, dag-10-wide, map-reduce, rag-verify, tree-search, speculative-3.

Synthetic, as `chains.py` explains. Siblings read one shared context on one model, so the prefix they share is the whole
context: where it is warm decides their time.
"""

from amf.core.graph import BranchGroup, Edge, GroupKind
from amf.sim.workload.draft import Draft, Reply, Shape
from amf.sim.workload.draws import LogNormal, LogUniform
from amf.sim.workload.template import LARGE, MEDIUM, SMALL, Template, fan, fleet, join, numbered

SHORT = LogNormal(256, 0.3, low=64)

# dag-4: a diamond; both sides read the same document on different models.
DIAMOND = {
    "split": Shape(pool=SMALL, static="split", own=SHORT, output=LogNormal(200, 0.4, low=16)),
    "left": Shape(pool=MEDIUM, static="left", own=SHORT, output=LogNormal(500, 0.5, low=16)),
    "right": Shape(pool=LARGE, static="right", own=SHORT, output=LogNormal(500, 0.5, low=16)),
    "merge": Shape(pool=LARGE, static="right", own=SHORT, output=LogNormal(400, 0.5, low=16)),
}


def _diamond(draft: Draft) -> None:
    document = draft.text(LogNormal(8_000, 0.7, low=512, high=60_000))
    split = draft.ask("split", DIAMOND["split"], draft.thread("split").read(document))
    left = draft.ask("left", DIAMOND["left"], draft.thread("left").read(document, split.text), [split])
    right = draft.ask("right", DIAMOND["right"], draft.thread("right").read(document, split.text), [split])
    draft.ask("merge", DIAMOND["merge"], right.thread.read(left.text), [left, right])


# dag-10-wide: one root, eight workers at once, one join; each worker has a tool to run first.
WIDE = 8
WIDE_SHAPES = {
    "split": Shape(pool=LARGE, static="lead", own=SHORT, output=LogNormal(400, 0.4, low=16)),
    **{
        hop: Shape(
            pool=MEDIUM,
            static="part",
            own=LogNormal(1_500, 0.8, low=64, high=20_000),
            output=LogNormal(300, 0.8, low=16),
            gap=LogNormal(1.0, 0.8),
        )
        for hop in numbered("part", WIDE)
    },
    "merge": Shape(pool=LARGE, static="lead", own=SHORT, output=LogNormal(600, 0.5, low=16)),
}


def _wide(draft: Draft) -> None:
    task = draft.text(LogNormal(3_000, 0.6, low=256, high=30_000))
    split = draft.ask("split", WIDE_SHAPES["split"], draft.thread("lead").read(task))
    parts = draft.ask_each("part", WIDE_SHAPES["part-1"], draft.thread("part").read(task, split.text), WIDE, [split])
    draft.ask("merge", WIDE_SHAPES["merge"], split.thread.read(*(part.text for part in parts)), parts)


# map-reduce: a document of 30 K tokens shared by eight mappers; the reducer, a larger model, reads the document too.
MAPPERS = 8
MAP_REDUCE = {
    "split": Shape(pool=SMALL, static="split", own=SHORT, output=LogNormal(150, 0.3, low=16)),
    **{
        hop: Shape(pool=SMALL, static="map", own=SHORT, output=LogNormal(250, 0.6, low=16))
        for hop in numbered("map", MAPPERS)
    },
    "reduce": Shape(pool=LARGE, static="reduce", own=SHORT, output=LogNormal(600, 0.5, low=32)),
}


def _map_reduce(draft: Draft) -> None:
    document = draft.text(LogNormal(30_000, 0.4, low=4_000, high=80_000))
    split = draft.ask("split", MAP_REDUCE["split"], draft.thread("split"))
    parts = draft.ask_each("map", MAP_REDUCE["map-1"], draft.thread("map").read(document, split.text), MAPPERS, [split])
    texts = [part.text for part in parts]
    draft.ask("reduce", MAP_REDUCE["reduce"], draft.thread("reduce").read(document, *texts), parts)


# rag-verify: 4 K to 110 K of retrieved text (log-uniform; the essay says 256 K, which exceeds these models' window), one
# answer, three verifiers on a smaller model, a revision with probability 0.3.
VERIFIERS, REVISION = 3, 0.3
RAG = {
    "answer": Shape(pool=MEDIUM, static="answer", own=SHORT, output=LogNormal(400, 0.5, low=16)),
    **{
        hop: Shape(pool=SMALL, static="verify", own=SHORT, output=LogNormal(80, 0.4, low=8))
        for hop in numbered("verify", VERIFIERS)
    },
    "revise": Shape(pool=MEDIUM, static="answer", own=SHORT, output=LogNormal(400, 0.5, low=16)),
}


def _rag(draft: Draft) -> None:
    found = draft.text(LogUniform(4_000, 110_000))
    answer = draft.ask("answer", RAG["answer"], draft.thread("answer").read(found))
    context = draft.thread("verify").read(found, answer.text)
    verdicts = draft.ask_each("verify", RAG["verify-1"], context, VERIFIERS, [answer])
    if draft.chance(REVISION):
        draft.ask("revise", RAG["revise"], answer.thread.read(*(verdict.text for verdict in verdicts)), verdicts)


# tree-search: three levels, three expansions each, scored by a small model; the best expansion is continued.
LEVELS, EXPANSIONS = 3, 3
TREE = {
    **{
        hop: Shape(pool=LARGE, static="expand", own=SHORT, output=LogNormal(250, 0.6, low=16))
        for level in range(1, LEVELS + 1)
        for hop in numbered(f"expand{level}", EXPANSIONS)
    },
    **{
        hop: Shape(pool=SMALL, static="score", own=SHORT, output=LogNormal(30, 0.3, low=4))
        for hop in numbered("score", LEVELS)
    },
}


def _tree(draft: Draft) -> None:
    problem = draft.text(LogNormal(3_000, 0.6, low=256, high=30_000))
    thread, after = draft.thread("expand").read(problem), list[Reply]()
    for level in range(1, LEVELS + 1):
        options = draft.ask_each(f"expand{level}", TREE["expand1-1"], thread, EXPANSIONS, after)
        judged = draft.thread("score").read(problem, *(option.text for option in options))
        score = draft.ask(f"score-{level}", TREE["score-1"], judged, options)
        thread, after = draft.rng.choice(options).thread, [score]


def tree_edges() -> tuple[Edge, ...]:
    edges: list[Edge] = []
    for level in range(1, LEVELS + 1):
        options = numbered(f"expand{level}", EXPANSIONS)
        edges += join(options, f"score-{level}")
        edges += fan(f"score-{level - 1}", options) if level > 1 else ()
    return tuple(edges)


# speculative-3: three alternatives at once on one context of 20 K, each tested (4 s of tool), a judge takes the best.
BRANCHES = 3
SPECULATIVE = {
    "plan": Shape(pool=LARGE, static="lead", own=SHORT, output=LogNormal(300, 0.4, low=16)),
    **{
        hop: Shape(pool=MEDIUM, static="attempt", own=SHORT, output=LogNormal(700, 0.7, low=32))
        for hop in numbered("attempt", BRANCHES)
    },
    "judge": Shape(pool=LARGE, static="lead", own=SHORT, output=LogNormal(80, 0.3, low=8), gap=LogNormal(4.0, 0.3)),
}


def _speculative(draft: Draft) -> None:
    context = draft.text(LogNormal(20_000, 0.5, low=2_000, high=80_000))
    plan = draft.ask("plan", SPECULATIVE["plan"], draft.thread("lead").read(context))
    thread = draft.thread("attempt").read(context, plan.text)
    attempts = draft.ask_each("attempt", SPECULATIVE["attempt-1"], thread, BRANCHES, [plan])
    draft.ask("judge", SPECULATIVE["judge"], plan.thread.read(*(attempt.text for attempt in attempts)), attempts)


FANS = (
    Template(
        name="dag-4",
        about="a diamond on three models",
        shapes=DIAMOND,
        statics={"split": 600, "left": 1_000, "right": 1_200},
        edges=(*fan("split", ("left", "right")), *join(("left", "right"), "merge")),
        fleet=fleet(small=1, medium=2, large=3),
        draw=_diamond,
    ),
    Template(
        name="dag-10-wide",
        about="one root, eight parallel workers, one join",
        shapes=WIDE_SHAPES,
        statics={"lead": 1_500, "part": 1_500},
        edges=(*fan("split", numbered("part", WIDE)), *join(numbered("part", WIDE), "merge")),
        fleet=fleet(large=2, medium=4),
        draw=_wide,
    ),
    Template(
        name="map-reduce",
        about="a 30 K document, eight mappers, a reducer that reads it too",
        shapes=MAP_REDUCE,
        statics={"split": 600, "map": 1_000, "reduce": 1_200},
        edges=(*fan("split", numbered("map", MAPPERS)), *join(numbered("map", MAPPERS), "reduce")),
        fleet=fleet(small=4, large=4),
        draw=_map_reduce,
    ),
    Template(
        name="rag-verify",
        about="retrieved text, an answer, three verifiers, a revision at times",
        shapes=RAG,
        statics={"answer": 1_000, "verify": 800},
        edges=(
            *fan("answer", numbered("verify", VERIFIERS)),
            *join(numbered("verify", VERIFIERS), "revise", REVISION),
        ),
        fleet=fleet(medium=4, small=3),
        draw=_rag,
    ),
    Template(
        name="tree-search",
        about="three levels of three expansions, scored, the best continued",
        shapes=TREE,
        statics={"expand": 1_200, "score": 800},
        edges=tree_edges(),
        fleet=fleet(large=4, small=1),
        draw=_tree,
        groups=tuple(
            BranchGroup(
                name=f"level-{level}", kind=GroupKind.BEST_OF, alternatives=numbered(f"expand{level}", EXPANSIONS)
            )
            for level in range(1, LEVELS + 1)
        ),
    ),
    Template(
        name="speculative-3",
        about="three attempts at once on a 20 K context, a judge takes the best",
        shapes=SPECULATIVE,
        statics={"lead": 1_500, "attempt": 1_500},
        edges=(
            *fan("plan", numbered("attempt", BRANCHES)),
            *join(numbered("attempt", BRANCHES), "judge"),
        ),
        fleet=fleet(large=2, medium=3),
        draw=_speculative,
        groups=(BranchGroup(name="attempts", kind=GroupKind.BEST_OF, alternatives=numbered("attempt", BRANCHES)),),
    ),
)

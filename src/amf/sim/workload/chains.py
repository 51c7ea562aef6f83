"""Built-in graphs that are mostly chains: coding-7hop, chain-3, text-to-sql, debate.

All synthetic: no public trace has several models, edges and times together. Answers are lognormal with sigma 0.3 to 1.0
and share one difficulty factor per pipeline (sigma 0.3), tools are lognormal. Contexts end below the 128 K window of the
models. What is known is used, and named below where it is; the other medians are our choice.
"""

from itertools import pairwise

from amf.core.graph import Edge
from amf.core.types import CallKind
from amf.sim.workload.draft import Draft, Shape
from amf.sim.workload.draws import LogNormal
from amf.sim.workload.template import EMBED, LARGE, MEDIUM, RERANK, SMALL, Template, chain, fan, fleet, join, numbered

SHORT = LogNormal(256, 0.3, low=64)

# coding-7hop: the essay's figure 1. Root of 2 K tokens; retrieved context with a median of 40 K, read by a coder and by a
# larger reviewer; the reviewer sends the code back with probability 0.35, at most three times. Retrieval itself is an
# embedding and a reranking, encoders that keep no KV.
CODING_TASK = LogNormal(2_000, 0.5, low=256, high=16_000)
CODING_CONTEXT = LogNormal(40_000, 0.6, low=4_000, high=90_000)
CODING_LOOP, CODING_ROUNDS = 0.35, 3
CODING = {
    "plan": Shape(pool=LARGE, static="lead", own=SHORT, output=LogNormal(500, 0.5, low=16)),
    "embed": Shape(pool=EMBED, static="query", own=SHORT, kind=CallKind.EMBED),
    "rerank": Shape(pool=RERANK, static="query", own=SHORT, kind=CallKind.RERANK),
    "code": Shape(pool=MEDIUM, static="coder", own=SHORT, output=LogNormal(1_200, 0.6, low=32)),
    "test": Shape(
        pool=MEDIUM,
        static="coder",
        own=LogNormal(600, 0.8, low=64),
        output=LogNormal(300, 0.5, low=16),
        gap=LogNormal(4.0, 0.8),
    ),
    "review": Shape(pool=LARGE, static="lead", own=SHORT, output=LogNormal(400, 0.5, low=16)),
    "finalise": Shape(pool=MEDIUM, static="coder", own=SHORT, output=LogNormal(300, 0.5, low=16)),
}


def _coding(draft: Draft) -> None:
    task, context = draft.text(CODING_TASK), draft.text(CODING_CONTEXT)
    plan = draft.ask("plan", CODING["plan"], draft.thread("lead").read(task))
    embed = draft.ask("embed", CODING["embed"], draft.thread("query").read(plan.text), [plan])
    rerank = draft.ask("rerank", CODING["rerank"], draft.thread("query").read(plan.text, context), [embed])
    lead = plan.thread.read(context)
    coder = draft.thread("coder").read(task, plan.text, context)
    cause = rerank
    for _ in range(1 + CODING_ROUNDS):
        code = draft.ask("code", CODING["code"], coder, [cause])
        test = draft.ask("test", CODING["test"], code.thread, [code])
        review = draft.ask("review", CODING["review"], lead.read(code.text, test.text), [test])
        lead, coder, cause = review.thread, test.thread.read(review.text), review
        if not draft.chance(CODING_LOOP):
            break
    draft.ask("finalise", CODING["finalise"], coder, [cause])


# chain-3: three models in a row, each reading what came before; nothing but the static text is shared.
CHAIN = {
    "outline": Shape(
        pool=SMALL, static="outline", own=LogNormal(1_500, 0.6, low=64), output=LogNormal(300, 0.5, low=16)
    ),
    "write": Shape(pool=LARGE, static="write", own=SHORT, output=LogNormal(800, 0.5, low=32)),
    "polish": Shape(pool=MEDIUM, static="polish", own=SHORT, output=LogNormal(600, 0.5, low=32)),
}


def _chain(draft: Draft) -> None:
    outline = draft.ask("outline", CHAIN["outline"], draft.thread("outline"))
    write = draft.ask("write", CHAIN["write"], draft.thread("write").read(outline.text), [outline])
    draft.ask("polish", CHAIN["polish"], draft.thread("polish").read(write.text), [write])


# text-to-sql: published pipelines have 16 to 21 calls, a first step of 649 tokens in and 21 out, 2 candidates, about 5
# evaluations, up to 10 revisions and a median answer of 22 tokens. Here: keywords, schema linking, 2 candidates, then
# revise, execute and evaluate until it works (0.85 to go on), then select: 16 calls on average.
SQL_LOOP, SQL_ROUNDS = 0.85, 10
SQL = {
    "keywords": Shape(pool=SMALL, static="keywords", own=SHORT, output=LogNormal(22, 0.5, low=4)),
    "link": Shape(
        pool=MEDIUM,
        static="sql",
        own=LogNormal(6_000, 0.6, low=512, high=40_000),
        output=LogNormal(60, 0.6),
    ),
    **{
        hop: Shape(pool=MEDIUM, static="sql", own=SHORT, output=LogNormal(120, 0.5, low=8))
        for hop in numbered("candidate", 2)
    },
    "revise": Shape(pool=MEDIUM, static="sql", own=LogNormal(300, 0.7, low=64), output=LogNormal(90, 0.5, low=8)),
    "evaluate": Shape(
        pool=SMALL,
        static="evaluate",
        own=SHORT,
        output=LogNormal(22, 0.4, low=4),
        gap=LogNormal(0.3, 1.0),
    ),
    "select": Shape(pool=SMALL, static="select", own=SHORT, output=LogNormal(20, 0.4, low=4)),
}


def _sql(draft: Draft) -> None:
    keywords = draft.ask("keywords", SQL["keywords"], draft.thread("keywords"))
    link = draft.ask("link", SQL["link"], draft.thread("sql").read(keywords.text), [keywords])
    causes = draft.ask_each("candidate", SQL["candidate-1"], link.thread, 2, [link])
    writer, critic = link.thread.read(*(each.text for each in causes)), draft.thread("evaluate")
    for _ in range(1 + SQL_ROUNDS):
        revise = draft.ask("revise", SQL["revise"], writer, causes)
        verdict = draft.ask("evaluate", SQL["evaluate"], critic.read(revise.text), [revise])
        writer, critic, causes = revise.thread.read(verdict.text), verdict.thread, [verdict]
        if not draft.chance(SQL_LOOP):
            break
    draft.ask("select", SQL["select"], draft.thread("select").read(revise.text), causes)


# debate: three debaters on one model, two rounds, each seeing all answers of the round before; a larger judge.
DEBATERS, DEBATE_ROUNDS = 3, 2
DEBATE = {
    **{
        f"round{number}-{debater}": Shape(pool=MEDIUM, static="debater", own=SHORT, output=LogNormal(400, 0.4, low=32))
        for number in range(1, DEBATE_ROUNDS + 1)
        for debater in range(1, DEBATERS + 1)
    },
    "judge": Shape(pool=LARGE, static="judge", own=SHORT, output=LogNormal(250, 0.4, low=16)),
}


def _debate(draft: Draft) -> None:
    question = draft.text(LogNormal(1_500, 0.6, low=128, high=20_000))
    thread = draft.thread("debater").read(question)
    before = draft.ask_each("round1", DEBATE["round1-1"], thread, DEBATERS, [])
    for number in range(2, DEBATE_ROUNDS + 1):
        after = [
            draft.ask(
                f"round{number}-{debater}",
                DEBATE["round1-1"],
                reply.thread.read(*(other.text for other in before if other is not reply)),
                before,
            )
            for debater, reply in enumerate(before, start=1)
        ]
        before = after
    draft.ask("judge", DEBATE["judge"], draft.thread("judge").read(question, *(each.text for each in before)), before)


def _debate_edges() -> tuple[Edge, ...]:
    rounds = [numbered(f"round{number}", DEBATERS) for number in range(1, DEBATE_ROUNDS + 1)]
    between = tuple(edge for left, right in pairwise(rounds) for hop in left for edge in fan(hop, right))
    return between + join(rounds[-1], "judge")


CHAINS = (
    Template(
        name="coding-7hop",
        about="the essay's figure 1: plan, embed, rerank, code, test, review (loops back to code), finalise",
        shapes=CODING,
        statics={"lead": 1_500, "coder": 2_500, "query": 64},
        edges=(
            *chain("plan", "embed", "rerank", "code", "test", "review", "finalise"),
            Edge(source="review", target="code", probability=CODING_LOOP, max_iterations=CODING_ROUNDS),
        ),
        fleet=fleet(large=3, medium=3, embed=1, rerank=1),
        draw=_coding,
    ),
    Template(
        name="chain-3",
        about="three models in a row",
        shapes=CHAIN,
        statics={"outline": 800, "write": 1_200, "polish": 800},
        edges=chain("outline", "write", "polish"),
        fleet=fleet(small=1, large=3, medium=2),
        draw=_chain,
    ),
    Template(
        name="text-to-sql",
        about="keywords, schema linking, two candidates, up to ten more revisions, selection",
        shapes=SQL,
        statics={"keywords": 600, "sql": 2_000, "evaluate": 600, "select": 500},
        edges=(
            *chain("keywords", "link"),
            *fan("link", numbered("candidate", 2)),
            *join(numbered("candidate", 2), "revise"),
            *chain("revise", "evaluate", "select"),
            Edge(source="evaluate", target="revise", probability=SQL_LOOP, max_iterations=SQL_ROUNDS),
        ),
        fleet=fleet(small=1, medium=3),
        draw=_sql,
    ),
    Template(
        name="debate",
        about="three debaters, two rounds, a judge",
        shapes=DEBATE,
        statics={"debater": 1_000, "judge": 800},
        edges=_debate_edges(),
        fleet=fleet(medium=3, large=1),
        draw=_debate,
    ),
)

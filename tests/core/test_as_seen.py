"""The odds of a declared graph, after its pipelines have shown what they do."""

import pytest

from amf.core.events import GraphDeclared
from amf.core.graph import CallGraph, Edge, Hop
from amf.core.state.transitions import Transitions, as_seen
from kit import Room


def graph(*edges: Edge) -> CallGraph:
    names = dict.fromkeys(hop for edge in edges for hop in (edge.source, edge.target))
    return CallGraph(name="g", hops=tuple(Hop(name=name, pool="m", expected_s=1.0) for name in names), edges=edges)


REVIEWED = graph(
    Edge(source="code", target="review"),
    Edge(source="review", target="code", probability=0.2, max_iterations=5),
    Edge(source="review", target="finish", probability=0.8),
)


def seen(pipelines: int, hops: dict[str, int], *edges: tuple[str, str]) -> Transitions:
    found = Transitions()
    for _ in range(pipelines):
        found.observe(hops, edges)
    return found


def odds(graph: CallGraph) -> dict[tuple[str, str], float]:
    return {(edge.source, edge.target): edge.probability for edge in graph.edges}


def test_what_was_declared_counts_like_twenty_pipelines():
    found = seen(
        20, {"code": 2, "review": 2, "finish": 1}, ("code", "review"), ("review", "code"), ("review", "finish")
    )
    learned = odds(as_seen(REVIEWED, found))
    assert learned["review", "code"] == pytest.approx((20 + 20 * 0.2) / 40)
    assert learned["review", "finish"] == pytest.approx(1.0 - learned["review", "code"]), "all of them finish some time"
    assert learned["code", "review"] == 1.0, "declared sure"


def test_with_many_pipelines_the_declaration_hardly_counts():
    branch = graph(Edge(source="a", target="b", probability=0.9), Edge(source="a", target="c", probability=0.1))
    found = seen(100, {"a": 1, "b": 1}, ("a", "b"))
    for _ in range(900):
        found.observe({"a": 1, "c": 1}, [("a", "c")])
    learned = odds(as_seen(branch, found))
    assert learned["a", "b"] == pytest.approx(0.1, abs=0.02) and learned["a", "c"] == pytest.approx(0.9, abs=0.02)
    assert sum(learned.values()) <= 1.0


def test_ways_that_were_both_taken_still_exclude_each_other():
    branch = graph(Edge(source="a", target="b", probability=0.5), Edge(source="a", target="c", probability=0.5))
    learned = odds(as_seen(branch, seen(2_000, {"a": 1, "b": 1, "c": 1}, ("a", "b"), ("a", "c"))))
    assert learned["a", "b"] == learned["a", "c"] == pytest.approx(0.5)


def test_a_loop_that_was_always_taken_still_ends():
    found = seen(1_900, {"code": 6, "review": 6}, ("code", "review"), ("review", "code"))
    learned = odds(as_seen(REVIEWED, found))
    assert learned["review", "code"] == pytest.approx(0.99, abs=0.01) and learned["review", "code"] < 1.0


@pytest.mark.parametrize("edges", [(), (("code", "review"),)])
def test_pipelines_that_do_not_say_where_they_come_from_leave_the_declaration_as_it_is(edges):
    assert as_seen(REVIEWED, seen(50, {"code": 1, "review": 1, "finish": 1}, *edges)) is REVIEWED
    assert as_seen(REVIEWED, None) is REVIEWED


def test_a_due_time_follows_what_pipelines_do():
    """`finish` takes 10 s and is said to be rare; all pipelines go there."""
    rare = graph(Edge(source="a", target="finish", probability=0.05), Edge(source="a", target="stop", probability=0.95))
    room = Room(workers=("w1",), min_evidence=3, pipeline_idle_s=1e9)
    room.send(GraphDeclared(at_s=0.0, graph=rare))
    for number in range(200):
        for hop, parents, takes_s in (("a", (), 1.0), ("finish", ("a",), 10.0)):
            final = hop == "finish"
            room.arrive(
                f"{hop}{number}", f"r{number}", graph="g", hop=hop, parents=parents, deadline_s=1e9, final=final
            )
            room.now_s += takes_s
            room.finish(f"{hop}{number}")
    after_s = room.fabric.book.profiles.paths.remaining(rare).seen.remaining(lambda _: 10.0)["a"]
    assert after_s == pytest.approx(10.0 * (0.95 * 20 + 0.05 * 20 + 200) / 220, rel=0.01)
    assert odds(room.fabric.book.profiles.paths.remaining(rare).seen)["a", "finish"] > 0.9

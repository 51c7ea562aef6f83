"""Call graphs by hand: what is refused and why, and the answers on small graphs worked out on paper."""

import dataclasses
from itertools import pairwise

import pytest

from amf.core.graph import (
    MAX_EDGES,
    MAX_HOPS,
    MAX_LOOPS,
    BranchGroup,
    CallGraph,
    Edge,
    GraphError,
    GroupKind,
    Hop,
    HopKind,
    graph_from_dict,
)


def graph(names: str, *edges: str, groups: tuple[BranchGroup, ...] = ()) -> CallGraph:
    """`graph("a b", "a b", "b a 0.3 2")`: hops, then edges as source, target, probability, loop bound."""
    parsed = []
    for edge in edges:
        source, target, *rest = edge.split()
        probability = float(rest[0]) if rest else 1.0
        parsed.append(
            Edge(source=source, target=target, probability=probability, max_iterations=int(rest[1]) if rest[1:] else 0)
        )
    hops = tuple(Hop(name=name, pool="m") for name in names.split())
    return CallGraph(name="g", hops=hops, edges=tuple(parsed), branch_groups=groups)


def group(kind: GroupKind, alternatives: str, k: int = 1, p: tuple[float, ...] = ()) -> tuple[BranchGroup, ...]:
    return (BranchGroup(name="b", kind=kind, alternatives=tuple(alternatives.split()), k=k, probabilities=p),)


def ones(hop: str) -> float:
    return 1.0


DIAMOND = graph("a b c d", "a b", "a c", "b d", "c d")
SECONDS = {"a": 1.0, "b": 2.0, "c": 5.0, "d": 3.0, "e": 7.0}


@pytest.mark.parametrize(
    ("names", "edges", "message"),
    [
        ("", (), "no hops"),
        ("a a", (), "'a' is declared twice"),
        ("a", ("a z",), "unknown hop 'z'"),
        ("a", ("z a",), "unknown hop 'z'"),
        ("a b", ("a b", "a b 0.5"), "a -> b is declared twice"),
        ("a b", ("a b 1.5",), "probability 1.5"),
        ("a b", ("a b -0.1",), r"probability -0\.1"),
        ("a b", ("a b nan",), "probability nan"),
        ("a b", ("a b 1 -2",), "loop bound -2"),
        ("a b c", ("a b 0.6", "a c 0.5"), "out of 'a' have probabilities that sum to 1.1"),
        ("a b", ("a b", "b a 0.5"), "cycle: [ab] -> [ab] -> [ab]"),
        ("a", ("a a",), "cycle: a -> a"),
        (
            "x a b c y",
            ("x a", "a b", "b c", "c a", "c y"),
            "cycle: (a -> b -> c -> a|b -> c -> a -> b|c -> a -> b -> c);",
        ),
        ("a b", ("a b", "a b 0.5 3"), "a -> b is declared twice"),
        ("a b", ("b a 0.5 3",), "loop edge b -> a does not go back"),
    ],
)
def test_a_graph_that_makes_no_sense_says_why(names: str, edges: tuple[str, ...], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        graph(names, *edges)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (group(GroupKind.BEST_OF, "b z"), "unknown hop 'z'"),
        (group(GroupKind.BEST_OF, ""), "no alternatives"),
        (group(GroupKind.BEST_OF, "b b"), "already an alternative"),
        (group(GroupKind.QUORUM, "b c", k=3), "k = 3"),
        (group(GroupKind.BEST_OF, "b c", k=2), "k = 2"),
        (group(GroupKind.QUORUM, "b c", p=(0.5, 0.5)), "takes no probabilities"),
        (group(GroupKind.PREDICTED, "b c", p=(0.5,)), "2 alternatives, 1 probabilities"),
        (group(GroupKind.PREDICTED, "b c", p=(0.9, 0.9)), "sum to more than 1"),
        (group(GroupKind.FIRST_SUCCESS, "b c", p=(0.9, 1.1)), "between 0 and 1"),
        (group(GroupKind.BEST_OF, "b") + group(GroupKind.BEST_OF, "c"), "name of its own"),
    ],
)
def test_a_branch_group_that_makes_no_sense_says_why(groups: tuple[BranchGroup, ...], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        graph("a b c d", "a b", "a c", "b d", "c d", groups=groups)


def test_sizes_are_bounded() -> None:
    hops = tuple(Hop(name=f"h{number:04}") for number in range(MAX_HOPS + 1))
    assert CallGraph(name="g", hops=hops[:MAX_HOPS]).order[0] == "h0000"
    with pytest.raises(GraphError, match="more than 1024"):
        CallGraph(name="g", hops=hops)
    pairs = [(a.name, b.name) for place, a in enumerate(hops[:100]) for b in hops[place + 1 : 100]]
    edges = tuple(Edge(source=a, target=b) for a, b in pairs)
    assert len(edges) > MAX_EDGES
    with pytest.raises(GraphError, match=f"more than {MAX_EDGES}"):
        CallGraph(name="g", hops=hops[:100], edges=edges)
    loops = tuple(Edge(source=hop.name, target=hop.name, max_iterations=1) for hop in hops[: MAX_LOOPS + 1])
    with pytest.raises(GraphError, match=f"more than {MAX_LOOPS} loop"):
        CallGraph(name="g", hops=hops[:100], edges=loops)
    with pytest.raises(GraphError, match="hint is -1"):
        CallGraph(name="g", hops=(Hop(name="a", output_tokens=-1),))
    with pytest.raises(GraphError, match="empty name"):
        CallGraph(name="g", hops=(Hop(name=""),))


def test_a_long_chain_is_no_recursion() -> None:
    names = [f"h{number:04}" for number in range(MAX_HOPS)]
    chain = graph(" ".join(names), *(f"{a} {b}" for a, b in pairwise(names)))
    assert chain.remaining_s("h0000", ones) == MAX_HOPS - 1
    assert chain.critical_path(ones) == (tuple(names), MAX_HOPS)


def test_look_ups() -> None:
    assert DIAMOND.order == ("a", "b", "c", "d")
    assert DIAMOND.roots == ("a",)
    assert [edge.target for edge in DIAMOND.children("a")] == ["b", "c"]
    assert [edge.source for edge in DIAMOND.parents("d")] == ["b", "c"]
    assert DIAMOND.precedes("a", "d") and DIAMOND.precedes("b", "b") and not DIAMOND.precedes("b", "c")
    assert DIAMOND.by_name["c"].pool == "m"
    assert DIAMOND.group_of("a") is None
    looping = graph("a b", "a b", "b a 0.3 2")
    assert looping.loops == (Edge(source="b", target="a", probability=0.3, max_iterations=2),)
    assert looping.parents("a") == ()
    for ask in (DIAMOND.children, DIAMOND.parents, DIAMOND.subgraph_hash, lambda hop: DIAMOND.remaining_s(hop, ones)):
        with pytest.raises(GraphError, match="no hop 'z'; known: a, b, c, d"):
            ask("z")


def test_ready_follows_done_and_skipped() -> None:
    assert DIAMOND.ready(()) == ("a",)
    assert DIAMOND.ready({"a"}) == ("b", "c")
    assert DIAMOND.ready({"a", "b"}) == ("c",)
    assert DIAMOND.ready({"a", "b", "c"}) == ("d",)
    assert DIAMOND.ready({"a", "b"}, {"c"}) == ("d",)
    assert DIAMOND.ready({"a"}, {"b", "c"}) == (), "d is skipped with its parents"
    assert DIAMOND.ready(["a", "b", "c", "d", "stranger"]) == ()
    tail = graph("a b c d e", "a b", "b c", "c d", "a e", "d e")
    assert tail.ready({"a"}, {"b"}) == ("e",), "skipping b skips c and d"


def test_a_join_does_not_wait_for_losing_alternatives() -> None:
    edges = ("a b", "a c", "a d", "b e", "c e", "d e")
    first = graph("a b c d e", *edges, groups=group(GroupKind.FIRST_SUCCESS, "b c d"))
    assert first.ready({"a", "c"}) == ("b", "d", "e")
    assert first.ready({"a", "c", "e"}, {"b", "d"}) == ()
    quorum = graph("a b c d e", *edges, groups=group(GroupKind.QUORUM, "b c d", k=2))
    assert quorum.ready({"a", "c"}) == ("b", "d")
    assert quorum.ready({"a", "c", "d"}) == ("b", "e")
    best = graph("a b c d e", *edges, groups=group(GroupKind.BEST_OF, "b c d"))
    assert best.ready({"a", "c", "d"}) == ("b",)


def test_remaining_takes_the_longest_sure_way() -> None:
    assert DIAMOND.remaining(SECONDS.__getitem__) == {"a": 8.0, "b": 3.0, "c": 3.0, "d": 0.0}
    assert DIAMOND.remaining_s("a", SECONDS.__getitem__) == 8.0
    assert DIAMOND.expected_s(SECONDS.__getitem__) == 9.0
    assert DIAMOND.critical_path(SECONDS.__getitem__) == (("a", "c", "d"), 9.0)
    assert DIAMOND.critical_path(ones) == (("a", "b", "d"), 3.0), "ties by name"
    turned = graph("a b c d", "c d", "b d", "a c", "a b")
    assert turned.critical_path(ones) == (("a", "b", "d"), 3.0), "whatever came first"


def test_remaining_weighs_conditional_ways() -> None:
    exclusive = graph("a b c", "a b 0.25", "a c 0.75")
    assert exclusive.remaining_s("a", SECONDS.__getitem__) == 0.25 * 2 + 0.75 * 5
    optional = graph("a b c", "a b", "a c 0.1")
    assert optional.remaining_s("a", SECONDS.__getitem__) == pytest.approx(0.9 * 2 + 0.1 * 5)
    shorter = graph("a b c", "a c", "a b 0.9")
    assert shorter.remaining_s("a", SECONDS.__getitem__) == pytest.approx(5), "the sure way hides a shorter one"


def test_remaining_adds_expected_repetitions() -> None:
    loop = graph("a b c d", "a b", "b c", "c d", "c b 0.5 2")
    assert loop.remaining_s("c", SECONDS.__getitem__) == 3 + (0.5 + 0.25) * (2 + 5)
    assert loop.remaining_s("a", SECONDS.__getitem__) == 2 + 5 + 3 + 0.75 * 7
    assert loop.remaining_s("d", SECONDS.__getitem__) == 0
    always = graph("a b", "a b", "b b 1 4")
    assert always.remaining_s("b", SECONDS.__getitem__) == 8
    leaving = graph("a b c", "a a 0.2 1", "a b 0.4", "a c 0.4")
    assert leaving.remaining_s("a", SECONDS.__getitem__) == pytest.approx(0.5 * 2 + 0.5 * 5 + 0.2 * 1)
    nested = graph("a b c", "a b", "b c", "b b 1 3", "c a 1 1")
    assert nested.remaining_s("c", ones) == 3 + 3, "one more round of a, b, c, with b's three repetitions"
    assert nested.expected_s(ones) == (3 + 3) * 2


@pytest.mark.parametrize(
    ("kind", "k", "p", "expected"),
    [
        (GroupKind.FIRST_SUCCESS, 1, (), 2),
        (GroupKind.FIRST_SUCCESS, 1, (0.5, 1.0, 1.0), 0.5 * 2 + 0.5 * 3),
        (GroupKind.FIRST_SUCCESS, 1, (0.0, 0.0, 0.0), 5),
        (GroupKind.QUORUM, 2, (), 3),
        (GroupKind.BEST_OF, 1, (), 5),
        (GroupKind.PREDICTED, 1, (), 10 / 3),
        (GroupKind.PREDICTED, 1, (0.5, 0.25, 0.25), 0.5 * 2 + 0.25 * 5 + 0.25 * 3),
        (GroupKind.PREDICTED, 1, (0.0, 0.0, 0.0), 10 / 3),
    ],
)
def test_branch_groups_count_as_one_way(kind: GroupKind, k: int, p: tuple[float, ...], expected: float) -> None:
    edges = ("a b", "a c", "a d", "b e", "c e", "d e")
    branching = graph("a b c d e", *edges, groups=group(kind, "b c d", k=k, p=p))
    assert branching.remaining_s("a", SECONDS.__getitem__) == pytest.approx(expected + 7)


def test_subgraph_hash_names_what_an_output_depends_on() -> None:
    base = DIAMOND.subgraph_hash("b")
    assert base == graph("b a", "a b").subgraph_hash("b"), "siblings and descendants do not matter"
    assert base != DIAMOND.subgraph_hash("c")
    assert base != graph("a b", "a b", "b a 0.5 2").subgraph_hash("b"), "a loop does"
    behind = graph("a b c", "a b", "a c", "c a 0.5 2")
    assert behind.subgraph_hash("b") != base, "a later round of a depends on c"
    hinted = dataclasses.replace(
        DIAMOND,
        name="other",
        hops=tuple(dataclasses.replace(hop, output_tokens=5, expected_s=1.0) for hop in DIAMOND.hops),
    )
    assert hinted.subgraph_hash("d") == DIAMOND.subgraph_hash("d")
    best = graph("a b c d", "a b", "a c", "b d", "c d", groups=group(GroupKind.BEST_OF, "b c"))
    first = graph("a b c d", "a b", "a c", "b d", "c d", groups=group(GroupKind.FIRST_SUCCESS, "b c"))
    assert len({DIAMOND.subgraph_hash("d"), best.subgraph_hash("d"), first.subgraph_hash("d")}) == 3
    assert best.subgraph_hash("b") == base, "an alternative does not depend on the others"
    assert DIAMOND.subgraph_hash("d") == "48444d3a46b6b4c0a51a24087f3d85f8", "stored results outlive a release"


def test_a_pipeline_reveals_its_hops_one_by_one() -> None:
    revealed = CallGraph(name="g", hops=(Hop(name="a", pool="m"),))
    for name, parents in (("b", ["a"]), ("c", ["a", "a"]), ("d", ["b", "c"])):
        revealed = revealed.extended(Hop(name=name, pool="m"), parents)
    assert revealed == DIAMOND
    assert revealed.extended(Hop(name="d", pool="m"), ["c"]) == DIAMOND
    assert revealed.extended(Hop(name="d", pool="m"), ["a"]).precedes("a", "d")
    with pytest.raises(GraphError, match="unknown hop 'z'"):
        revealed.extended(Hop(name="e", pool="m"), ["z"])
    with pytest.raises(GraphError, match="cycle: e -> e"):
        revealed.extended(Hop(name="e", pool="m"), ["e"])
    with pytest.raises(GraphError, match="cycle"):
        revealed.extended(Hop(name="a", pool="m"), ["d"])
    with pytest.raises(GraphError, match="'a' was generate on 'm' before"):
        revealed.extended(Hop(name="a", pool="other"))
    assert revealed == DIAMOND, "a refused extension changes nothing"


FORM = {
    "name": "coding",
    "hops": {
        "plan": {"pool": "large", "output_tokens": 800, "prompt_tokens": 2000, "expected_s": 4},
        "retrieve": {"kind": "embed", "model": "bge-m3", "after": "plan"},
        "draft-1": {"pool": "large", "after": ["retrieve", {"hop": "plan", "p": 0.2}]},
        "draft-2": {"pool": "small", "after": ["retrieve"]},
        "test": {"kind": "tool", "after": ["draft-1", "draft-2"]},
        "done": None,
    },
    "edges": [{"from": "test", "to": "plan", "p": 0.3, "loop": 3}, {"from": "test", "to": "done"}],
    "groups": [
        {"name": "drafts", "kind": "first_success", "alternatives": ["draft-1", "draft-2"], "p": [0.7, 0.5]},
    ],
}


def test_the_form_users_write_is_read() -> None:
    coding = graph_from_dict(FORM)
    assert coding.order == ("plan", "retrieve", "draft-1", "draft-2", "test", "done")
    assert coding.by_name["plan"] == Hop(
        name="plan", pool="large", prompt_tokens=2000, output_tokens=800, expected_s=4.0
    )
    assert coding.by_name["retrieve"] == Hop(name="retrieve", pool="bge-m3", kind=HopKind.EMBED)
    assert coding.parents("draft-1") == (
        Edge(source="plan", target="draft-1", probability=0.2),
        Edge(source="retrieve", target="draft-1"),
    )
    assert coding.loops == (Edge(source="test", target="plan", probability=0.3, max_iterations=3),)
    drafts = coding.group_of("draft-2")
    assert drafts is not None and drafts.probabilities == (0.7, 0.5)
    as_list = {"name": "l", "hops": ["a", {"name": "b", "after": "a"}]}
    assert graph_from_dict(as_list).order == ("a", "b")


def test_the_form_is_written_back() -> None:
    coding = graph_from_dict(FORM)
    assert graph_from_dict(coding.to_dict()) == coding
    assert DIAMOND.to_dict() == {
        "name": "g",
        "hops": [{"name": name, "pool": "m"} for name in "abcd"],
        "edges": [{"from": a, "to": b} for a, b in ("ab", "ac", "bd", "cd")],
    }


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ([], "the graph: expected a mapping.*not list"),
        ({"hops": ["a"]}, "the graph: name: expected a string, not nothing"),
        ({"name": "g"}, "no hops"),
        ({"name": "g", "hops": 3}, "hops: expected a list, not int"),
        ({"name": "g", "hops": [7]}, "a hop: expected a mapping.*not int"),
        ({"name": "g", "hops": {1: {}}}, "a hop: name: expected a string, not 1"),
        (
            {"name": "g", "hops": ["a"], "edge": []},
            "the graph: unknown key 'edge'; known keys: name, hops, edges, groups",
        ),
        ({"name": "g", "hops": {"a": {"temperature": 1}}}, "hop 'a': unknown key 'temperature'"),
        ({"name": "g", "hops": {"a": {"pool": "x", "model": "y"}}}, "both 'pool' and 'model'"),
        ({"name": "g", "hops": {"a": {"kind": "llm"}}}, "hop 'a': unknown kind 'llm'; known kinds: generate, embed"),
        ({"name": "g", "hops": {"a": {"kind": []}}}, r"hop 'a': unknown kind \[\]"),
        ({"name": "g", "hops": {"a": {"output_tokens": 1.5}}}, "output_tokens: expected a whole number, not 1.5"),
        ({"name": "g", "hops": {"a": {"expected_s": True}}}, "expected_s: expected a number, not True"),
        ({"name": "g", "hops": {"a": {"after": "z"}}}, "edge z -> a names the unknown hop 'z'"),
        ({"name": "g", "hops": {"a": {"after": [{"p": 1}]}}}, "hop 'a': after: hop: expected a string, not nothing"),
        ({"name": "g", "hops": ["a"], "edges": [{"from": "a"}]}, "an edge: to: expected a string, not nothing"),
        ({"name": "g", "hops": ["a"], "groups": [{"name": "b"}]}, "branch group 'b': unknown kind None"),
        ({"name": "g", "hops": {"a": {"after": "b"}, "b": {"after": "a"}}}, "the graph has a cycle"),
    ],
)
def test_a_form_that_cannot_be_read_says_where(form: object, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        graph_from_dict(form)  # type: ignore[arg-type]

"""Laws of call graphs, over random ones: order, readiness, paths against brute force, hashes, forms, cycles."""

import dataclasses
import itertools
from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from amf.core.graph import (
    BranchGroup,
    CallGraph,
    Edge,
    GraphError,
    GroupKind,
    Hop,
    HopKind,
    graph_from_dict,
)

EIGHTHS = st.integers(0, 8).map(lambda eighths: eighths / 8)


@st.composite
def graphs(draw: st.DrawFn, *, sure: bool = False, most: int = 9) -> CallGraph:
    """DAGs in a shuffled order of declaration; unless `sure`, with conditional edges, loops and a branch group."""
    count = draw(st.integers(1, most))
    names = [f"h{number}" for number in range(count)]
    edges, left = [], dict.fromkeys(names, 1.0)
    for target in range(count):
        for source in draw(st.sets(st.integers(0, target - 1), max_size=3)) if target else ():
            p = 1.0 if sure else draw(EIGHTHS)
            if p < 1:
                p = min(p, left[names[source]])
                left[names[source]] -= p
            edges.append(Edge(source=names[source], target=names[target], probability=p))
    hops = [
        Hop(
            name=name,
            pool=draw(st.sampled_from(["", "large", "small"])),
            kind=draw(st.sampled_from(list(HopKind))),
            output_tokens=draw(st.none() | st.integers(0, 10)),
            expected_s=draw(st.none() | st.floats(0, 10)),
        )
        for name in names
    ]
    random = Random(draw(st.integers(0, 2**16)))
    random.shuffle(hops)
    random.shuffle(edges)
    graph = CallGraph(name="g", hops=tuple(hops), edges=tuple(edges))
    return graph if sure else draw(embellished(graph, left))


@st.composite
def embellished(draw: st.DrawFn, graph: CallGraph, left: dict[str, float]) -> CallGraph:
    loops = []
    for source in draw(st.lists(st.sampled_from(graph.order), max_size=2, unique=True)):
        target = draw(st.sampled_from([hop for hop in graph.order if graph.precedes(hop, source)]))
        bound = draw(st.integers(1, 4))
        loops.append(Edge(source=source, target=target, probability=left[source] / 2, max_iterations=bound))
    alternatives = draw(st.lists(st.sampled_from(graph.order), max_size=3, unique=True))
    kind = draw(st.sampled_from(list(GroupKind)))
    k = len(alternatives) if kind is GroupKind.QUORUM else 1
    groups = (BranchGroup(name="b", kind=kind, alternatives=tuple(alternatives), k=k),) if alternatives else ()
    return dataclasses.replace(graph, edges=graph.edges + tuple(loops), branch_groups=groups)


def forward(graph: CallGraph) -> Iterator[Edge]:
    return (edge for edge in graph.edges if not edge.max_iterations)


def paths_from(graph: CallGraph, hop: str) -> Iterator[tuple[str, ...]]:
    """Every path from a hop to a leaf."""
    children = graph.children(hop)
    if not children:
        yield (hop,)
    for edge in children:
        for path in paths_from(graph, edge.target):
            yield (hop, *path)


def weights(graph: CallGraph, seed: int) -> dict[str, float]:
    random = Random(seed)
    return {hop: random.choice([0.0, 1.0, random.uniform(0, 20)]) for hop in sorted(graph.order)}


seeds = st.integers(0, 2**16)


@given(graphs())
def test_topological_order_respects_every_edge(graph: CallGraph) -> None:
    assert sorted(graph.order) == sorted(hop.name for hop in graph.hops)
    place = {hop: position for position, hop in enumerate(graph.order)}
    assert all(place[edge.source] < place[edge.target] for edge in forward(graph))


@given(graphs(), seeds)
def test_following_ready_completes_every_hop_once(graph: CallGraph, seed: int) -> None:
    random, done = Random(seed), list[str]()
    while ready := graph.ready(done):
        hop = random.choice(ready)
        assert hop not in done
        if graph.branch_groups == ():
            assert all(edge.source in done for edge in graph.parents(hop))
        done.append(hop)
    assert sorted(done) == sorted(graph.order)


@given(graphs(), seeds)
def test_skipping_never_strands_a_hop(graph: CallGraph, seed: int) -> None:
    """Whatever is skipped on the way, the walk ends with nothing ready and every leftover behind skipped hops only."""
    random, done, skipped = Random(seed), list[str](), list[str]()
    while ready := graph.ready(done, skipped):
        random.choice([done, skipped]).append(random.choice(ready))
    assert not set(done) & set(skipped)
    for hop in graph.order:
        if hop not in done and hop not in skipped:
            parents = [edge.source for edge in graph.parents(hop)]
            assert parents and not any(parent in done for parent in parents)


@given(graphs(), seeds)
def test_critical_path_is_the_longest_of_all_paths(graph: CallGraph, seed: int) -> None:
    own = weights(graph, seed)
    lengths = {path: sum(map(own.__getitem__, path)) for root in graph.roots for path in paths_from(graph, root)}
    path, seconds = graph.critical_path(own.__getitem__)
    assert path in lengths
    assert seconds == pytest.approx(max(lengths.values()))
    assert seconds == pytest.approx(lengths[path])


@given(graphs(sure=True), seeds)
def test_remaining_of_sure_graphs_is_the_longest_path_after(graph: CallGraph, seed: int) -> None:
    own = weights(graph, seed)
    remaining = graph.remaining(own.__getitem__)
    for hop in graph.order:
        longest = max(sum(map(own.__getitem__, path[1:])) for path in paths_from(graph, hop))
        assert remaining[hop] == pytest.approx(longest)
    for edge in graph.edges:
        assert remaining[edge.source] >= own[edge.target] + remaining[edge.target]
    assert graph.expected_s(own.__getitem__) == pytest.approx(graph.critical_path(own.__getitem__)[1])


@given(graphs(), seeds)
def test_expectation_without_loops_stays_below_the_worst_case(graph: CallGraph, seed: int) -> None:
    straight = dataclasses.replace(graph, edges=tuple(forward(graph)))
    own = weights(graph, seed)
    expected = straight.expected_s(own.__getitem__)
    assert -1e-9 <= expected <= straight.critical_path(own.__getitem__)[1] * (1 + 1e-9)


@given(graphs(), seeds)
def test_remaining_grows_with_any_hop(graph: CallGraph, seed: int) -> None:
    own = weights(graph, seed)
    before = graph.remaining(own.__getitem__)
    slower = {hop: seconds + (2.0 if hop == graph.order[-1] else 0.0) for hop, seconds in own.items()}
    after = graph.remaining(slower.__getitem__)
    assert all(after[hop] >= before[hop] - 1e-9 for hop in graph.order)


@given(EIGHTHS, st.integers(1, 5), st.floats(0, 20))
def test_a_loop_costs_its_expected_rounds(p: float, bound: int, each_s: float) -> None:
    line = CallGraph(
        name="line",
        hops=(Hop(name="s"), Hop(name="t")),
        edges=(Edge(source="s", target="t"), Edge(source="t", target="s", probability=p, max_iterations=bound)),
    )
    rounds = sum(p**iteration for iteration in range(1, bound + 1))
    assert line.remaining_s("t", lambda hop: each_s) == pytest.approx(rounds * 2 * each_s)


@given(graphs(), seeds)
def test_answers_do_not_depend_on_the_order_of_declaration(graph: CallGraph, seed: int) -> None:
    random, hops, edges = Random(seed), list(graph.hops), list(graph.edges)
    random.shuffle(hops)
    random.shuffle(edges)
    other = dataclasses.replace(graph, hops=tuple(hops), edges=tuple(edges))
    own = weights(graph, seed)
    assert other.order == graph.order
    assert other.critical_path(own.__getitem__) == graph.critical_path(own.__getitem__)
    assert other.remaining(own.__getitem__) == graph.remaining(own.__getitem__)
    assert [other.subgraph_hash(hop) for hop in graph.order] == [graph.subgraph_hash(hop) for hop in graph.order]


@given(graphs(sure=True), st.data())
def test_subgraph_hash_changes_exactly_with_hop_and_ancestors(graph: CallGraph, data: st.DataObject) -> None:
    changed = data.draw(st.sampled_from(graph.hops))
    new = dataclasses.replace(changed, pool=changed.pool + "-next")
    other = dataclasses.replace(graph, hops=tuple(new if hop is changed else hop for hop in graph.hops))
    for hop in graph.order:
        assert (graph.subgraph_hash(hop) != other.subgraph_hash(hop)) == graph.precedes(changed.name, hop)
    assume(graph.edges)
    removed = data.draw(st.sampled_from(graph.edges))
    pruned = dataclasses.replace(graph, edges=tuple(edge for edge in graph.edges if edge is not removed))
    for hop in graph.order:
        assert (graph.subgraph_hash(hop) != pruned.subgraph_hash(hop)) == graph.precedes(removed.target, hop)


@given(graphs())
def test_the_written_form_reads_back(graph: CallGraph) -> None:
    assert graph_from_dict(graph.to_dict()) == graph


@given(graphs(sure=True))
def test_revealing_hop_by_hop_gives_the_same_answers(graph: CallGraph) -> None:
    first, *others = graph.order
    revealed = CallGraph(name="g", hops=(graph.by_name[first],))
    for hop in others:
        revealed = revealed.extended(graph.by_name[hop], [edge.source for edge in graph.parents(hop)])
    assert revealed.order == graph.order
    assert [revealed.subgraph_hash(hop) for hop in graph.order] == [graph.subgraph_hash(hop) for hop in graph.order]


@given(graphs(), st.data())
def test_every_unexplained_cycle_is_refused_and_named(graph: CallGraph, data: st.DataObject) -> None:
    source = data.draw(st.sampled_from(graph.order))
    target = data.draw(st.sampled_from([hop for hop in graph.order if graph.precedes(hop, source)]))
    known = {(edge.source, edge.target) for edge in graph.edges}
    assume((source, target) not in known)
    with pytest.raises(GraphError, match="cycle: ") as refused:
        dataclasses.replace(graph, edges=(*graph.edges, Edge(source=source, target=target)))
    cycle = str(refused.value).split("cycle: ")[1].split(";")[0].split(" -> ")
    assert cycle[0] == cycle[-1] and len(set(cycle)) == len(cycle) - 1
    steps = set(itertools.pairwise(cycle))
    assert (source, target) in steps
    assert steps <= {(edge.source, edge.target) for edge in forward(graph)} | {(source, target)}
    explained = Edge(source=source, target=target, max_iterations=2)
    assert dataclasses.replace(graph, edges=(*graph.edges, explained)).order == graph.order

"""Due times over random graphs and random pasts: never falling along an edge, never after the deadline, and true to what they
state."""

from itertools import cycle, islice, pairwise
from math import log

from hypothesis import given, settings
from hypothesis import strategies as st
from test_graph_laws import forward, graphs

from amf.core.config import FabricConfig
from amf.core.graph import CallGraph
from amf.core.path import HopTime
from amf.core.state.hindsight import Factor, Stage
from amf.core.state.paths import Known, Paths

QUANTILES = st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0])
SECONDS = st.floats(0.0, 1e4)


@st.composite
def pasts(draw: st.DrawFn) -> tuple[CallGraph, dict[str, Known]]:
    """A graph, and for each hop two seconds that half of its calls take, a gap and some evidence."""
    graph = draw(graphs(most=7))
    known = {}
    for hop in graph.order:
        low_s, high_s = sorted((draw(SECONDS), draw(SECONDS)))
        time = HopTime(lambda q, low_s=low_s, high_s=high_s: low_s if q < 0.5 else high_s, draw(st.floats(0.0, 100.0)))
        known[hop] = Known(time, draw(st.floats(0.0, 2_000.0)))
    return graph, known


@settings(max_examples=150, deadline=None)
@given(pasts(), QUANTILES)
def test_due_times_never_fall_along_an_edge_and_the_last_is_the_deadline(past, quantile):
    graph, known = past
    room = Paths(FabricConfig(budget_quantile=quantile), lambda _, hop: known[hop]).remaining(graph).after_s
    assert sorted(room) == sorted(graph.order)
    for edge in forward(graph):
        assert room[edge.source] >= room[edge.target] >= 0.0
    looping = {loop.source for loop in graph.loops}
    assert all(room[hop] == 0.0 for hop in graph.order if not graph.children(hop) and hop not in looping)


@settings(max_examples=100, deadline=None)
@given(pasts())
def test_a_higher_quantile_leaves_no_less_room(past):
    graph, known = past
    rooms = [
        Paths(FabricConfig(budget_quantile=q), lambda _, hop: known[hop]).remaining(graph).after_s
        for q in (0.5, 0.9, 0.99)
    ]
    assert all(low[hop] <= high[hop] for low, high in pairwise(rooms) for hop in graph.order)


@settings(max_examples=100, deadline=None)
@given(pasts())
def test_evidence_is_the_least_of_all_that_may_follow(past):
    graph, known = past
    evidence = Paths(FabricConfig(), lambda _, hop: known[hop]).remaining(graph).evidence
    for hop in graph.order:
        assert evidence[hop] == min(known[each].evidence for each in graph.order if graph.precedes(hop, each))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.3, 3.0), min_size=1, max_size=30), st.sampled_from([0.5, 0.9, 0.99]))
def test_the_stated_share_is_within_whatever_pipelines_take(takes, quantile):
    factor, within, pipelines = Factor(), 0, 4_000
    for took_s in islice(cycle(takes), pipelines):
        said_s = factor.value
        within += took_s <= said_s
        factor.observe([Stage("a", (), 0.0, 0.0, took_s, said_s)], quantile)
    assert abs(within - quantile * pipelines) <= (log(3.0 / 0.3) + 0.005) / 0.005

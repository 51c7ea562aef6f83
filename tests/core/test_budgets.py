"""By when a hop is due: what is learned of the path after it, when that is composed anew, and what a dispatch says."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest

from amf.core.config import FabricConfig
from amf.core.events import GraphDeclared
from amf.core.graph import CallGraph, Edge, Hop
from amf.core.path import HopTime
from amf.core.policy.bundles import BUNDLES
from amf.core.state.hindsight import Stage
from amf.core.state.paths import Known, Paths
from amf.core.state.profiles import Profiles
from amf.core.types import Call
from kit import Room, dispatch_in


def chain(*names: str, hints: dict[str, float] | None = None) -> CallGraph:
    return CallGraph(
        name="g",
        hops=tuple(Hop(name=name, pool="m", expected_s=(hints or {}).get(name)) for name in names),
        edges=tuple(Edge(source=left, target=right) for left, right in pairwise(names)),
    )


def call(number: int, hop: str) -> Call:
    return Call(call_id=f"{hop}{number}", run_id=f"r{number}", pool="m", graph="g", hop=hop)


def two_ways(low_s: float, high_s: float, gap_s: float = 0.0) -> Known:
    return Known(HopTime(lambda q: low_s if q < 0.8 else high_s, gap_s), 10.0)


def test_quantiles_of_what_follows_are_composed_and_not_summed():
    """Two hops that take 1 s, or 11 s one time in five: both are one time in 25, so the p90 of the two is 12 s, not 22 s."""
    graph = chain("a", "b", "c")
    after_s = Paths(FabricConfig(), lambda graph, hop: two_ways(1.0, 11.0)).remaining(graph).after_s
    assert after_s == {"a": pytest.approx(12.0), "b": pytest.approx(11.0), "c": 0.0}


def test_gaps_before_hops_count_and_the_slowest_sibling_does():
    graph = CallGraph(
        name="g",
        hops=tuple(Hop(name=name, pool="m") for name in ("root", "slow", "fast", "join")),
        edges=tuple(
            Edge(source=source, target=target)
            for source, target in (("root", "slow"), ("root", "fast"), ("slow", "join"), ("fast", "join"))
        ),
    )
    known = {"root": two_ways(1, 1), "slow": two_ways(9, 9, 2.0), "fast": two_ways(3, 3), "join": two_ways(5, 5, 1.0)}
    after_s = Paths(FabricConfig(), lambda graph, hop: known[hop]).remaining(graph).after_s
    assert after_s == {"root": 2 + 9 + 1 + 5, "slow": 6, "fast": 6, "join": 0}, (
        "siblings are due when the join needs them"
    )


def test_a_rare_branch_to_much_work_is_not_due_before_the_hop_that_leads_to_it():
    graph = CallGraph(
        name="g",
        hops=tuple(Hop(name=name, pool="m") for name in ("a", "repair", "test")),
        edges=(Edge(source="a", target="repair", probability=0.02), Edge(source="repair", target="test")),
    )
    after_s = Paths(FabricConfig(), lambda graph, hop: two_ways(50, 50)).remaining(graph).after_s
    assert after_s == {"a": 50.0, "repair": 50.0, "test": 0.0}, "the p90 after a alone would be 0"


def test_without_evidence_hints_count_and_then_what_the_pool_took():
    profiles = Profiles(FabricConfig())
    hinted, plain = chain("a", "b", hints={"b": 7.0}), chain("a", "b")
    assert profiles.paths.remaining(hinted).after_s["a"] == 7.0
    assert profiles.paths.remaining(plain).after_s["a"] == 0.0, "nothing is known"
    profiles.observe_call(call(0, "b"), 10, 3.0)
    known = profiles.hop_time(plain, "b")
    assert (known.time.quantile(0.9), known.evidence) == (3.0, 0.0), "one observation is no evidence"
    assert profiles.hop_time(plain, "a").time.quantile(0.9) == 3.0, "as the pool's calls took"


def test_a_seen_position_gives_its_quantiles_and_its_gap():
    profiles = Profiles(FabricConfig())
    for number in range(20):
        profiles.observe_call(call(number, "b"), 10, 1.0 if number < 16 else 11.0)
        profiles.observe_gap(call(number, "b"), 4.0)
    known = profiles.hop_time(chain("a", "b"), "b")
    assert (known.evidence, known.time.gap_s) == (20.0, 4.0)
    assert [known.time.quantile(q) for q in (0.5, 0.9)] == [
        pytest.approx(1.0, rel=0.0201),
        pytest.approx(11.0, rel=0.0201),
    ]
    assert profiles.paths.remaining(chain("a", "b")).after_s["a"] == pytest.approx(15.0, rel=0.0201)


def test_it_is_composed_anew_after_a_tenth_more_calls_or_another_declaration():
    composed = []
    config = FabricConfig(min_evidence=8)

    def known(graph: CallGraph, hop: str) -> Known:
        composed.append(hop)
        return two_ways(1.0, 2.0)

    paths, graph = Paths(config, known), chain("a")
    first = paths.remaining(graph)
    for _ in range(7):
        paths.observe_call("g")
        assert paths.remaining(graph) is first
    paths.observe_call("g")
    assert paths.remaining(graph) is not first and len(composed) == 2
    for _ in range(1_000):
        paths.observe_call("g")
        paths.remaining(graph)
    assert 2 + 9 + 20 <= len(composed) <= 2 + 9 + 30, "each eight calls up to eighty, then each time a tenth more"
    before = len(composed)
    again = replace(graph)
    assert paths.remaining(again).graph is again and len(composed) == before + 1


def test_the_graphs_that_are_kept_are_bounded():
    paths = Paths(FabricConfig(max_graphs=3), lambda graph, hop: two_ways(1.0, 2.0))
    for number in range(9):
        paths.remaining(replace(chain("a"), name=f"g{number}"))
        paths.observe_end(f"g{number}", [Stage("a", (), 0.0, 0.0, 1.0, None)], True)
    assert len(paths._remaining) == len(paths._finished) == len(paths._ended) == 3


def hard_and_easy(room: Room, runs: int) -> None:
    """Pipelines of two hops, both of which take 1, 2 or 4 s, in turn."""
    for number in range(runs):
        for hop in ("a", "b"):
            final = hop == "b"
            room.arrive(f"{hop}{number}", f"r{number}", graph="g", hop=hop, deadline_s=1e6, final=final)
            room.now_s += (1.0, 2.0, 4.0)[number % 3]
            room.finish(f"{hop}{number}")


def test_the_correlation_within_pipelines_is_measured_and_outlives_a_restart():
    room = Room(workers=("w1",), min_evidence=3)
    room.send(GraphDeclared(at_s=0.0, graph=chain("a", "b")))
    hard_and_easy(room, 60)
    profiles = room.fabric.book.profiles
    found = profiles.paths.correlation("g")
    assert 0.5 < found < 1.0, "the hops of a run are equally hard; some runs came before there was any evidence"
    records = json.loads(json.dumps(list(profiles.records())))
    again = Profiles.from_records(records, room.fabric.config)
    assert again.paths.correlation("g") == found and list(again.records()) == records
    records[-1]["squares"] = -1.0
    with pytest.raises(ValueError, match="damaged"):
        Profiles.from_records(records, room.fabric.config)


def test_a_dispatch_states_the_quantile_and_the_order_reckons_with_the_mean():
    stated = {}
    for policy in ("fabric", "least-slack"):
        room = Room(policy, workers=("w1",), min_evidence=3, pipeline_idle_s=1e9)
        room.send(GraphDeclared(at_s=0.0, graph=chain("a", "b")))
        for number in range(10):
            for hop in ("a", "b"):
                room.arrive(f"{hop}{number}", f"r{number}", graph="g", hop=hop, final=hop == "b")
                room.now_s += 11.0 if number in (3, 7) else 1.0
                room.finish(f"{hop}{number}")
        due_s = room.now_s + 100.0
        sent = dispatch_in(room.arrive("x", "rx", graph="g", hop="a", deadline_s=due_s))
        stated[policy] = sent
        assert sent.urgency_s == pytest.approx(due_s - 3.0 - 3.0), "both hops take 3 s on average"
    assert stated["least-slack"].budget_s == pytest.approx(97.0)
    assert stated["fabric"].budget_s == pytest.approx(89.0, rel=0.01), "p90 of the hop that follows: 11 s"
    assert stated["fabric"].slack_s == pytest.approx(86.0, rel=0.01)


def test_without_a_deadline_or_a_declaration_nothing_is_composed():
    room = Room(workers=("w1",))
    room.send(GraphDeclared(at_s=0.0, graph=chain("a", "b")))
    assert dispatch_in(room.arrive("a", "r1", graph="g", hop="a")).budget_s is None
    assert dispatch_in(room.arrive("b", "r2", deadline_s=50.0)).budget_s == 50.0
    assert dispatch_in(room.arrive("c", "r3", graph="g", hop="elsewhere", deadline_s=50.0)).budget_s == 50.0
    assert not room.fabric.book.profiles.paths._remaining


def test_only_ours_states_another_time_than_it_orders_by():
    ours = ["fabric", "fabric-kill", "fabric-hard", "fabric-clairvoyant"]
    assert [name for name, each in BUNDLES.items() if each.stated] == ours

"""Laws of time: budgets along random graphs, who is admitted, the line through logarithms, urgency at each engine."""

import json
import math
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_graph_laws import graphs

from amf.core.config import FabricConfig
from amf.core.decisions import Dispatch, Refuse
from amf.core.events import GraphDeclared
from amf.core.graph import CallGraph
from amf.core.policy.admission import by_demand
from amf.core.policy.interface import FleetView
from amf.core.state.demand import Demand
from amf.core.state.lanes import Lanes
from amf.core.state.logline import LogLine
from amf.core.state.outcomes import Outcomes
from amf.core.state.pipelines import Pipeline, Pipelines
from amf.core.state.pledges import Pledges
from amf.core.state.profiles import Profiles
from amf.core.types import Call
from amf.engines.vllm import priority
from kit import Room, ended_pipeline, prefix

SLO_S = 10_000.0
HOUR_S = 3_600.0


# --- Budgets --------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(graphs(sure=True, most=6), st.integers(0, 2**16), st.booleans())
def test_hops_are_due_in_order_along_every_path_and_the_last_within_the_slo(graph: CallGraph, seed: int, taught: bool):
    """Whatever the bundle's budget is, at one moment and with the same that has been seen."""
    random = Random(seed)
    room = Room("fabric", workers=("w1",), min_evidence=2)
    room.send(GraphDeclared(at_s=0.0, graph=graph))
    profiles = room.fabric.book.profiles
    for number in range(40 if taught else 0):
        hop = random.choice(graph.order)
        profiles.observe_call(
            Call(call_id=f"s{number}", run_id="s", pool="m", graph="g", hop=hop), 10, random.random() * 30
        )
    due: dict[str, float] = {}
    for hop in graph.order:  # all of them open at once
        deadline_s = SLO_S if not due else None
        decisions = room.arrive(hop, "r", prefix((hop, 160)), graph="g", hop=hop, deadline_s=deadline_s)
        sent = [each for each in decisions if isinstance(each, Dispatch) and each.call_id == hop]
        assert sent and sent[0].budget_s is not None
        due[hop] = sent[0].budget_s
    assert all(due[edge.source] <= due[edge.target] + 1e-6 for edge in graph.edges)
    assert max(due.values()) <= SLO_S


# --- Admission ------------------------------------------------------------------------------------------------------------


def demand_of(paths_s: list[float], budgets_s: list[float]) -> Profiles:
    """Ended pipelines with these paths and budgets, a third of the path being work in pool m."""
    profiles = Profiles(FabricConfig(demand_evidence=1))
    for path_s, budget_s in zip(paths_s, budgets_s, strict=False):
        profiles.demand.observe(pipeline(path_s, budget_s))
    return profiles


def pipeline(path_s: float, budget_s: float) -> Pipeline:
    return ended_pipeline(budget_s=budget_s, path_s=path_s, first_tokens=1_000, work_s={"m": path_s / 3})


def verdict(profiles: Profiles, budget_s: float, pledged: list[tuple[float, float]]) -> str:
    pledges = Pledges()
    for number, (due_s, seconds) in enumerate(pledged):
        pledges.set(f"p{number}", due_s + 1.0, due_s, {"m": seconds})
    view = FleetView(
        now_s=0.0,
        config=FabricConfig(demand_evidence=1),
        pipelines=Pipelines(),
        profiles=profiles,
        lanes=Lanes(),
        outcomes=Outcomes(8),
        workers={"m": 2},
        pledges=pledges,
    )
    call = Call(call_id="c", run_id="c", pool="m", graph="g", prefix=prefix(("c", 992), tail=8), deadline_s=budget_s)
    return by_demand(call, view).code


budgets = st.floats(1.0, HOUR_S)
paths = st.floats(0.5, 600.0)
pledged = st.lists(st.tuples(st.floats(0.0, HOUR_S), st.floats(0.1, 400.0)), max_size=12)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(paths, budgets), min_size=1, max_size=12), budgets, pledged, st.tuples(budgets, paths))
def test_one_more_live_pipeline_never_turns_a_refusal_into_an_admission(
    ended: list[tuple[float, float]], budget_s: float, live: list[tuple[float, float]], more: tuple[float, float]
):
    profiles = demand_of(*map(list, zip(*ended, strict=True)))
    if verdict(profiles, budget_s, live):
        assert verdict(profiles, budget_s, [*live, more])


@settings(max_examples=200, deadline=None)
@given(st.lists(paths, min_size=1, max_size=12), budgets, budgets, budgets, pledged)
def test_a_longer_deadline_is_never_refused_where_a_shorter_one_is_admitted(
    paths_s: list[float], seen_s: float, one_s: float, other_s: float, live: list[tuple[float, float]]
):
    """Where the time that callers gave says nothing of the path. Where it does, a longer deadline also announces a larger
    pipeline (the test below), and may be refused."""
    profiles = demand_of(paths_s, [seen_s] * len(paths_s))
    shorter_s, longer_s = sorted((one_s, other_s))
    if not verdict(profiles, shorter_s, live):
        assert not verdict(profiles, longer_s * (1 + 1e-9), live)


def test_who_asks_for_more_time_is_taken_to_need_more():
    """Paths as the square of the time given, 1 s for 10 s up to 100 s for 100 s: 40 s are enough for a path of about 16 s,
    and 200 s are not for one of 400 s."""
    budgets_s = [10.0 * 1.1**step for step in range(25)] * 20
    profiles = demand_of([budget_s**2 / 100 for budget_s in budgets_s], budgets_s)
    assert verdict(profiles, 40.0, []) == ""
    assert verdict(profiles, 200.0, []) == "deadline_infeasible"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.floats(20, 400), st.integers(1, 40)), min_size=5, max_size=40))
def test_an_admitted_pipeline_is_never_refused_by_admission_later(steps: list[tuple[int, float, int]]):
    room = Room("fabric", workers=("w1",), demand_evidence=2, max_live_pipelines=4)
    for number in range(3):
        room.serve(
            f"t{number}", prompt=prefix((f"t{number}", 51_200)), graph="g", final=True, deadline_s=room.now_s + 300
        )
    for number, (run, budget_s, blocks) in enumerate(steps):
        live = room.fabric.is_live(f"r{run}")
        prompt = prefix((f"c{number}", 1_600 * blocks))
        deadline_s = room.now_s + budget_s
        decisions = room.arrive(f"c{number}", f"r{run}", prompt, graph="g", deadline_s=deadline_s)
        codes = [each.code for each in decisions if isinstance(each, Refuse)]
        assert not (live and codes), codes
        assert room.fabric.is_live(f"r{run}") == (not codes)
        room.now_s += 1.0


# --- The line through logarithms ------------------------------------------------------------------------------------------


@given(st.floats(-2, 2), st.floats(-2, 2), st.floats(-5, 5), st.floats(0.0, 0.5), st.integers(0, 2**16))
def test_a_line_is_recovered(a: float, b: float, level: float, noise: float, seed: int):
    """From 400 observations spread over +-2: the ridge takes 2 of about 400 x 4/3 from each slope, so within half a percent
    of the slope, and five standard errors (noise / sqrt(400 x 4/3) = noise / 23)."""
    random, line = Random(seed), LogLine()
    for _ in range(400):
        x1, x2 = random.uniform(-2, 2), random.uniform(-2, 2)
        line.observe(x1, x2, level + a * x1 + b * x2 + random.gauss(0, noise))
    for x1, x2 in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (-1.0, 1.0)):
        guess, true = line.guess(x1, x2), level + a * x1 + b * x2
        assert math.log(guess.median) == pytest.approx(true, abs=0.03 + 0.02 * (abs(a) + abs(b)) + 0.5 * noise)
        assert guess.sigma == pytest.approx(noise, abs=0.05 + 0.2 * noise + 0.1 * (abs(a) + abs(b)))


positive = st.floats(1e-3, 1e9)


STEEP = [(1.0, 1.0, 1e-3), (1.0, 1.05, 1e9)]  # a slope of 86, after which 1e9 would be e to the 1,780th


@given(st.lists(st.tuples(positive, positive, positive), max_size=30), st.integers(1, 300), positive, positive)
@example(STEEP, 300, 1.0, 1e9)
@example(STEEP, 300, 1.0, 1e-3)
def test_a_guess_is_finite_and_positive_whatever_was_seen(
    seen: list[tuple[float, float, float]], times: int, x1: float, x2: float
):
    """Seconds and tokens from a thousandth to a thousand million."""
    line = LogLine()
    for triple in seen * times:
        line.observe(*map(math.log, triple))
    guess = line.guess(math.log(x1), math.log(x2))
    for value in (guess.median, guess.mean, guess.sigma):
        assert 0.0 < value < math.inf
    assert 0.0 <= guess.odds_below(x2) <= guess.odds_below(2 * x2) <= 1.0
    again = LogLine.from_list(json.loads(json.dumps(line.to_list())))
    assert again.guess(math.log(x1), math.log(x2)) == guess


@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=20), positive)
def test_the_size_of_any_pipeline_is_finite_and_survives_as_json(ended: list[tuple[float, float]], budget_s: float):
    config = FabricConfig(demand_evidence=1)
    one, other = Demand(config), Demand(config)
    for path_s, given_s in ended:
        one.observe(pipeline(path_s, given_s))
    for name, record in one.records():
        other.load(name, json.loads(json.dumps(record)))
    size = one.size(pipeline(1.0, budget_s))
    assert 0.0 < size < math.inf and other.size(pipeline(1.0, budget_s)) == size


# --- Urgency at the engine ------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1.0, 100_000.0), min_size=2, max_size=6))
def test_who_is_due_sooner_never_has_a_lower_priority_at_vllm(budgets_s: list[float]):
    """From the deadline of each call to the number its engine gets; with vLLM the lower number goes first."""
    room = Room("fabric", workers=("w1",))
    numbers = []
    for number, budget_s in enumerate(budgets_s):
        decisions = room.arrive(f"c{number}", prompt=prefix((f"c{number}", 160)), deadline_s=budget_s)
        numbers += [priority(each.urgency_s) for each in decisions if isinstance(each, Dispatch)]
    assert len(numbers) == len(budgets_s)
    ranked = sorted(zip(budgets_s, numbers, strict=True))
    assert [number for _, number in ranked] == sorted(numbers)

"""What pipelines ask of the fleet and who may still start, on hand-made cases: numbers are worked out in the tests."""

import json
from math import exp, inf, log, sqrt

import pytest

from amf.core.config import FabricConfig
from amf.core.policy.admission import by_demand
from amf.core.policy.interface import FleetView, Verdict
from amf.core.state.demand import GraphDemand
from amf.core.state.lanes import Lanes
from amf.core.state.logline import Guess, LogLine
from amf.core.state.mean import Mean
from amf.core.state.outcomes import Outcomes
from amf.core.state.pipelines import Pipeline, Pipelines
from amf.core.state.pledges import Pledges
from amf.core.state.profiles import Profiles
from amf.core.types import Call
from kit import ended_pipeline as pipeline
from kit import prefix

RULES = FabricConfig(demand_share=0.8, demand_path_share=1.0)  # of admission, whatever is best by default


def learned(*ended: Pipeline, **config: object) -> Profiles:
    profiles = Profiles(FabricConfig(**config))  # type: ignore[arg-type]
    for each in ended:
        profiles.demand.observe(each)
    return profiles


def ask(profiles: Profiles, budget_s: float, pledged: dict[int, float], workers: int = 1) -> Verdict:
    """`pledged`: worker-seconds of pool m by the second they are due."""
    pledges = Pledges()
    for due_s, seconds in pledged.items():
        pledges.set(f"live{due_s}", due_s + 20.0, due_s, {"m": seconds})
    view = FleetView(
        now_s=0.0,
        config=RULES,
        pipelines=Pipelines(),
        profiles=profiles,
        lanes=Lanes(),
        outcomes=Outcomes(8),
        workers={"m": workers},
        pledges=pledges,
    )
    call = Call(call_id="c", run_id="c", pool="m", graph="g", prefix=prefix(("p", 1_024)), deadline_s=budget_s)
    return by_demand(call, view)


# --- A mean ---------------------------------------------------------------------------------------------------------------


def test_a_mean_is_exact_at_first_and_follows_after():
    mean = Mean(7.0)
    for value in (1.0, 2.0, 6.0):
        mean.observe(value)
    assert (mean.value, mean.count) == (3.0, 3), "what it began with counts nothing"
    for _ in range(47):
        mean.observe(3.0)
    mean.observe(53.0)
    assert mean.value == pytest.approx(4.0), "the 51st counts a fiftieth, not a fifty-first"
    again = Mean.from_list(json.loads(json.dumps(mean.to_list())))
    assert (again.value, again.count) == (mean.value, mean.count)


# --- A line through logarithms --------------------------------------------------------------------------------------------


def test_a_line_knows_nothing_at_first_and_then_what_it_saw():
    line = LogLine()
    assert line.guess(3.0, 4.0) == Guess(1.0, 1.0)
    for _ in range(5):
        line.observe(1.0, 2.0, log(10.0))
    assert line.guess(1.0, 2.0).median == pytest.approx(10.0)
    assert line.guess(9.0, -9.0).median == pytest.approx(10.0), "no slope without a difference"
    assert line.guess(1.0, 2.0).sigma == pytest.approx(0.01), "never surer than that"


def test_a_slope_is_shrunk_by_the_ridge():
    """x2 of -1 and 1, y = 3 x2, each once: the sums of squares are 2 + 2 of the ridge, so the slope is 3 x 2/4; what is left
    unexplained of the variance of 9 is 9 - 1.5 x 6 / 2. (The older one counts 0.999.)"""
    line = LogLine()
    line.observe(0.0, -1.0, -3.0)
    line.observe(0.0, 1.0, 3.0)
    guess = line.guess(0.0, 1.0)
    assert log(guess.median) == pytest.approx(1.5, abs=0.01)
    assert guess.sigma == pytest.approx(sqrt(4.5), abs=0.01)


def test_a_guess_is_lognormal():
    guess = Guess(10.0, 0.5)
    assert guess.mean == pytest.approx(10.0 * exp(0.125))
    assert guess.odds_below(10.0) == pytest.approx(0.5)
    assert guess.odds_below(10.0 * exp(0.5 * 1.2816)) == pytest.approx(0.9, abs=1e-4)
    assert guess.odds_below(0.0) == guess.odds_below(-1.0) == 0.0


# --- Demand of a graph ----------------------------------------------------------------------------------------------------


def test_work_is_the_mean_over_all_pipelines_in_pools_that_only_some_use():
    demand = GraphDemand()
    demand.observe(pipeline(work_s={"m": 4.0}))
    demand.observe(pipeline(work_s={"m": 2.0, "n": 9.0}))
    demand.observe(pipeline(work_s={"m": 3.0}, idle_s=5.0))
    assert {pool: mean.value for pool, mean in demand.work_s.items()} == pytest.approx({"m": 3.0, "n": 3.0})
    assert demand.path_s.value == pytest.approx((10 + 10 + 15) / 3), "tools are of the path"
    assert demand.pipelines == demand.timed == 3


def test_what_a_pipeline_still_needs_and_by_when():
    """Mean: 4 s of work on a path of 10 s. One of twice the size that has done 2 s of its 8 has 3/4 of its 20 s left."""
    demand = GraphDemand()
    demand.observe(pipeline())
    half = pipeline(size=2.0, work_s={"m": 2.0})
    assert demand.needed_s(half, "m") == 6.0 and demand.needed_s(half, "n") == 0.0
    assert demand.latest_useful_s(half, 1.0) == pytest.approx(100.0 - 15.0)
    assert demand.latest_useful_s(half, 0.5) == pytest.approx(100.0 - 7.5)
    beyond = pipeline(work_s={"m": 50.0})
    assert demand.needed_s(beyond, "m") == 0.0 and demand.latest_useful_s(beyond, 1.0) == 100.0
    assert demand.latest_useful_s(pipeline(budget_s=None), 1.0) == inf


def test_a_graph_counts_once_enough_of_its_pipelines_had_a_deadline():
    """Those without say nothing of what a path is for a given time, and 1 s would be a guess of nothing."""
    profiles = learned(*(pipeline(budget_s=None) for _ in range(20)), *(pipeline() for _ in range(7)))
    assert profiles.demand.of("g") is None and profiles.demand.size(pipeline()) == 1.0
    assert ask(profiles, 1.0, {}).code == "", "nobody is refused on no evidence"
    profiles.demand.observe(pipeline())
    found = profiles.demand.of("g")
    assert found is not None and found.pipelines == 28
    assert profiles.demand.size(pipeline()) == pytest.approx(1.0, abs=1e-3)


def test_the_least_recently_learned_graph_goes():
    profiles = learned(max_graphs=2, demand_evidence=1)
    for graph in ("a", "b", "a", "c"):
        profiles.demand.observe(pipeline(graph_name=graph))
    assert [profiles.demand.of(graph) is not None for graph in "abc"] == [True, False, True]


# --- Who may start --------------------------------------------------------------------------------------------------------


SAME = tuple(pipeline() for _ in range(8))  # alone 10 s, give or take 1 %; 4 s of work in m


@pytest.mark.parametrize(
    ("pledged", "workers", "code", "retry_after_s"),
    [
        # Its 4 s are due at 100 - 10 = 90 s, until when 0.8 x 90 = 72 s may be done.
        ({}, 1, "", None),
        ({50: 67.0}, 1, "", None),
        ({50: 69.0}, 1, "pipeline_admission_refused", 10.0),  # 73 / 0.8 - 90 = 1.25 s are lacking: the least hint
        ({50: 88.0}, 1, "pipeline_admission_refused", 25.0),  # 92 / 0.8 - 90
        ({50: 88.0}, 2, "", None),  # two workers do 144 s
        ({150: 115.0}, 1, "", None),  # 119 of 120 s by then
        ({150: 117.0}, 1, "pipeline_admission_refused", 10.0),  # it would make late what is due after it
        ({20: 40.0}, 1, "", None),  # late already, and not because of it
    ],
)
def test_work_due_by_any_time_may_not_exceed_what_can_be_done(pledged, workers, code, retry_after_s):
    verdict = ask(learned(*SAME), 100.0, pledged, workers)
    assert (verdict.code, verdict.retry_after_s) == (code, retry_after_s and pytest.approx(retry_after_s, abs=0.01))


def test_kept_promises_earn_a_margin_and_broken_ones_lose_it():
    """Of a target of 0.8, a kept promise raises the margin's logarithm by 0.1 x 0.2, a broken one lowers it by 0.1 x 0.8."""
    profiles = learned(*SAME)
    demand = profiles.demand.of("g")
    assert demand is not None and ask(profiles, 100.0, {50: 90.0}).code == "pipeline_admission_refused"
    for _ in range(16):
        demand.judge(True, 0.8)
    assert demand.margin == pytest.approx(exp(0.32))  # and so 72 x 1.377 = 99 s may be done
    assert ask(profiles, 100.0, {50: 90.0}).code == "" and ask(profiles, 100.0, {50: 97.0}).code
    for _ in range(4):
        demand.judge(False, 0.8)
    assert demand.margin == pytest.approx(1.0), "in balance at four in five"
    for kept, bound in ((True, 4.0), (False, 0.5)):
        for _ in range(200):
            demand.judge(kept, 0.8)
        assert demand.margin == bound


@pytest.mark.parametrize("margin", [1.0, 0.5])
def test_a_pipeline_that_would_be_alone_is_refused_by_its_odds_only(margin: float):
    """Its 4 s of work do not fit into 0.8 x (12 - 10) s, but nobody else's are in the way, and the margin could never rise
    again if nobody were admitted."""
    profiles = learned(*SAME)
    demand = profiles.demand.of("g")
    assert demand is not None
    demand.margin = margin
    assert ask(profiles, 12.0, {}).code == ""
    assert ask(profiles, 12.0, {300: 0.1}).code == "pipeline_admission_refused"
    assert ask(profiles, 9.0, {}).code == "deadline_infeasible"


def test_a_deadline_that_the_path_alone_will_miss_is_infeasible_and_needs_no_hint():
    verdict = ask(learned(*SAME), 5.0, {})
    assert (verdict.code, verdict.retry_after_s) == ("deadline_infeasible", None)
    assert "alone it takes about 10.0 s" in verdict.because.reason


def test_a_passed_deadline_and_none_at_all_ask_for_no_demand():
    profiles = learned(*SAME)
    assert ask(profiles, -1.0, {}).code == "deadline_exceeded"
    assert ask(profiles, None, {50: 1e9}).code == ""


# --- Kept -----------------------------------------------------------------------------------------------------------------


def records(*ended: Pipeline) -> list[dict]:
    return json.loads(json.dumps(list(learned(*ended).records())))


def test_demand_survives_as_json():
    before = learned(*SAME, pipeline(budget_s=None), pipeline(budget_s=300.0, path_s=30.0))
    before.demand.of("g").judge(True, 0.8)
    after = Profiles.from_records(json.loads(json.dumps(list(before.records()))), FabricConfig())
    one, other = before.demand.of("g"), after.demand.of("g")
    assert one is not None and other is not None and other.to_dict() == one.to_dict()
    assert (other.pipelines, other.timed) == (10, 9)
    assert other.guess(2_000, 200.0) == one.guess(2_000, 200.0)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda demand: demand.pop("line"),
        lambda demand: demand.update(line=[1.0]),
        lambda demand: demand["line"].__setitem__(3, float("nan")),
        lambda demand: demand["line"].__setitem__(0, -1.0),
        lambda demand: demand["line"].__setitem__(0, 0.0),
        lambda demand: demand.update(path_s=[0.0, 8]),
        lambda demand: demand.update(timed=9),
        lambda demand: demand.update(margin=-1.0),
        lambda demand: demand.update(work_s={"m": [-1.0, 8]}),
    ],
)
def test_damaged_demand_is_refused(spoil):
    spoilt = records(*SAME)
    spoil(spoilt[-1])
    with pytest.raises(ValueError, match="record 1 is damaged"):
        Profiles.from_records(spoilt, FabricConfig())

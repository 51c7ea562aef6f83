"""Goals and their arithmetic, on hand-made reports."""

from math import exp, log, sqrt

import pytest

from amf.experiment.crossing import crossing
from amf.experiment.goals import judge, others
from amf.experiment.study import Gain, Limit, Points, Reaches

SEEDS = (7, 8)


def report(
    policy: str, seed: int, jct_s: float | None, hit: float | None = 0.5, calls: float = 1.0, met: float = 1.0
) -> dict:
    spread = {"mean": jct_s, "p50": jct_s, "p95": jct_s, "p99": jct_s}
    return {
        "policy": policy, "seed": seed, "completed": 1, "cost_usd": 1.0, "jct_s": spread, "ttft_s": spread,
        "stretch": spread, "lateness_s": spread, "recomputed_tokens": 1, "gpu_s": 1.0, "slo_attainment": met,
        "goodput_per_s": 1.0,
        "hit_ratio": hit, "call_imbalance": calls, "notes": [], "wasted_speculative_tokens": None,
        "speculation": {"needless_tokens": None, "own": spread, "others": spread},
    }  # fmt: skip


def runs(**jct_s: tuple[float | None, ...]) -> list[dict]:
    return [report(policy, seed, times[i]) for i, seed in enumerate(SEEDS) for policy, times in jct_s.items()]


def gain(reports: list[dict], **changes) -> dict:
    goal = {"name": "g", "setting": "here", "figure": "jct_s.mean", "at_least": 1.15, **changes}
    return judge(Gain(**goal), {"here": reports})


def test_a_gain_is_over_the_strongest_rival_and_has_students_interval():
    judged = gain(runs(weak=(40.0, 40.0), strong=(12.0, 20.0), fabric=(10.0, 10.0)))
    logs = [log(1.2), log(2.0)]
    mean = sum(logs) / 2
    half = 12.706 * sqrt(sum((each - mean) ** 2 for each in logs)) / sqrt(2)
    assert judged["rival"] == "strong" and judged["value"] == pytest.approx(exp(mean))
    assert judged["ci95"] == [pytest.approx(exp(mean - half)), pytest.approx(exp(mean + half))]
    assert judged["goal"] == ">= 1.15" and judged["met"] is True
    assert judged["verdict"] == "inside the noise", "met by its value, and said to be noise"


def test_a_gain_below_its_limit_is_missed_and_a_loss_is_called_one():
    judged = gain(runs(rival=(9.0, 9.1), fabric=(10.0, 10.0)))
    assert judged["met"] is False and judged["value"] < 1 and judged["verdict"] == "worse"


def test_only_the_named_rivals_count():
    reports = runs(other=(5.0, 5.0), rule=(20.0, 20.0), fabric=(10.0, 10.0))
    assert gain(reports)["rival"] == "other"
    judged = gain(reports, rivals=("rule",))
    assert (judged["rival"], judged["value"], judged["met"]) == ("rule", pytest.approx(2.0), True)


def test_the_fabric_in_another_form_is_no_rival_where_there_are_real_ones():
    reports = [
        {**each, "policy": each["policy"].replace("better", "fabric-hard")}
        for each in runs(fabric=(2.0, 2.0), other=(4.0, 4.0), better=(1.0, 1.0))
    ]
    assert gain(reports)["rival"] == "other"
    assert others("fabric", reports) == ["other"]
    own = [each for each in reports if each["policy"] != "other"]
    assert others("fabric", own) == ["fabric-hard"], "there is nobody else"


def test_a_setting_may_be_held_against_another():
    reports = {"exact": runs(fabric=(10.0, 20.0)), "late": runs(fabric=(20.0, 40.0))}
    goal = Gain(name="g", setting="late", figure="jct_s.mean", at_least=0.95, rivals=("fabric",), than="exact")
    judged = judge(goal, reports)
    assert (judged["value"], judged["met"], judged["rival"]) == (pytest.approx(0.5), False, "fabric, exact")


def test_without_a_figure_a_goal_is_neither_met_nor_missed():
    judged = gain(runs(rival=(None, 10.0), fabric=(10.0, 10.0)))
    assert (judged["value"], judged["met"], judged["verdict"]) == (None, None, "not comparable")
    none = Limit(name="g", setting="here", figure="hit_ratio", at_least=0.1)
    assert judge(none, {"here": [report("fabric", 7, 1.0, hit=None)]})["met"] is None


@pytest.mark.parametrize(
    ("limit", "said", "met"),
    [
        ({"at_most": 1.5}, "<= 1.5", True),
        ({"at_most": 1.2}, "<= 1.2", False),
        ({"at_least": 1.25}, ">= 1.25", True),
        ({"at_least": 1.25, "at_most": 1.35}, ">= 1.25 and <= 1.35", True),
        ({"at_least": 1.32, "at_most": 1.35}, ">= 1.32 and <= 1.35", False),
    ],
)
def test_a_limit_is_on_the_mean_over_the_seeds(limit: dict, said: str, met: bool):
    reports = [
        report("fabric", 7, 1.0, calls=1.2),
        report("fabric", 8, 1.0, calls=1.4),
        report("rival", 7, 1.0, calls=9.0),
    ]
    judged = judge(Limit(name="g", setting="here", figure="call_imbalance", **limit), {"here": reports})
    assert (judged["goal"], judged["met"], judged["value"]) == (said, met, pytest.approx(1.3))
    assert judged["ci95"] == [pytest.approx(1.3 - 12.706 * 0.1), pytest.approx(1.3 + 12.706 * 0.1)]


def shares(**hit: tuple[float | None, float | None]) -> list[dict]:
    return [report(policy, seed, 1.0, hit=each[i]) for i, seed in enumerate(SEEDS) for policy, each in hit.items()]


def points(reports: list[dict], **changes) -> dict:
    goal = {"name": "g", "setting": "here", "figure": "hit_ratio", "at_least": 0.03, **changes}
    return judge(Points(**goal), {"here": reports})


def test_points_are_paired_differences_from_the_best_with_students_interval():
    judged = points(shares(cold=(0.2, 0.3), warm=(0.5, 0.9), fabric=(0.52, 0.96)))
    half = 12.706 * sqrt(2 * 0.02**2) / sqrt(2)
    assert judged["rival"] == "warm" and judged["value"] == pytest.approx(0.04) and judged["goal"] == ">= 0.03"
    assert judged["ci95"] == [pytest.approx(0.04 - half), pytest.approx(0.04 + half)]
    assert judged["met"] is True and judged["verdict"] == "inside the noise"


def test_points_behind_are_below_zero():
    judged = points(shares(cold=(0.2, 0.2), warm=(0.80, 0.80), fabric=(0.79, 0.79)), at_least=-0.02)
    assert (judged["value"], judged["met"], judged["verdict"]) == (pytest.approx(-0.01), True, "no spread")
    assert points(shares(warm=(0.80, 0.81), fabric=(0.70, 0.715)), at_least=-0.02)["met"] is False
    named = points(shares(cold=(0.2, 0.21), warm=(0.9, 0.9), fabric=(0.5, 0.515)), rivals=("cold",))
    assert (named["rival"], named["verdict"]) == ("cold", "better")


def test_points_of_a_share_that_a_run_lacks_are_unknown():
    assert points(shares(warm=(0.5, 0.5), fabric=(0.5, None)))["met"] is None
    assert points(shares(warm=(None, 0.5), fabric=(0.5, 0.5)))["met"] is None


@pytest.mark.parametrize(
    ("rival", "ours", "met", "verdict"),
    [
        ((9.0, 9.0), (0.0, 0.0), True, "better"),
        ((0.0, 0.0), (1.0, 2.0), False, "worse"),
        ((0.0, 9.0), (1.0, 2.0), None, "inside the noise"),
        ((0.0, 0.0), (0.0, 0.0), False, "the same"),
    ],
)
def test_a_lateness_of_nothing_has_no_ratio(rival: tuple, ours: tuple, met: bool | None, verdict: str):
    judged = gain(runs(rival=rival, fabric=ours), figure="lateness_s.p99", at_least=2.5)
    assert (judged["met"], judged["verdict"]) == (met, verdict)
    assert judged["value"] == (1.0 if verdict == "the same" else None)


def test_a_crossing_lies_between_two_points_straight_in_the_logarithm():
    assert crossing([(1.0, 0.5), (2.0, 0.9), (8.0, 1.0)], 0.95) == pytest.approx(4.0)
    assert crossing([(1.0, 0.5), (2.0, 0.95), (8.0, 1.0)], 0.95) == pytest.approx(2.0)
    assert crossing([(1.0, 0.5), (2.0, 0.96), (4.0, 0.9), (8.0, 1.0)], 0.95) < 2.0, "the smallest"
    assert crossing([(1.0, 0.5), (2.0, 0.9)], 0.95) is None, "never reached"
    assert crossing([(1.0, 0.97), (2.0, 0.9), (4.0, 1.0)], 0.95) is None, "reached before the first"
    assert crossing([], 0.95) is None


def scales(**met: tuple[tuple[float, float, float], ...]) -> dict[str, list[dict]]:
    """Shares met at scales 1, 2, 8, for each seed."""
    return {
        str(x): [
            report(policy, seed, 1.0, met=by_seed[i][place])
            for i, seed in enumerate(SEEDS)
            for policy, by_seed in met.items()
        ]
        for place, x in enumerate((1, 2, 8))
    }


def reaches(reports: dict[str, list[dict]], *rivals: str) -> dict:
    along = ((1.0, "1"), (2.0, "2"), (8.0, "8"))
    goal = Reaches(
        name="g", setting="all", along=along, figure="slo_attainment", target=0.95, at_least=4 / 3, rivals=rivals
    )
    return judge(goal, reports)


def test_who_needs_less_is_found_on_the_axis_and_paired():
    at_2, at_4, at_8 = (0.5, 0.95, 1.0), (0.5, 0.9, 1.0), (0.5, 0.7, 0.95)
    reports = scales(slow=(at_8, at_8), quick=(at_4, at_4), fabric=(at_2, at_4))
    judged = reaches(reports, "slow", "quick")
    assert (judged["rival"], judged["verdict"], judged["met"]) == ("quick", "inside the noise", True)
    assert judged["value"] == pytest.approx(sqrt(2)) and judged["goal"] == ">= 1.333"
    assert "between 1 and 8 at fabric 2.83; slow 8; quick 4" in judged["note"]
    assert reaches(scales(rival=(at_4, at_4), fabric=(at_8, at_8)), "rival")["met"] is False


def test_a_target_that_is_not_reached_is_said_and_not_extrapolated():
    reports = scales(never=((0.5, 0.7, 0.9), (0.5, 0.9, 1.0)), fabric=((0.5, 0.95, 1.0), (0.5, 0.95, 1.0)))
    judged = reaches(reports, "never")
    assert (judged["value"], judged["met"], judged["verdict"]) == (None, None, "not comparable")
    assert "fabric 2; never not there on 1 of 2 seeds" in judged["note"]

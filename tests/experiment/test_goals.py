"""Goals and their arithmetic, on hand-made reports."""

from math import exp, log, sqrt

import pytest

from amf.experiment.goals import judge
from amf.experiment.study import Behind, Gain, Limit

SEEDS = (7, 8)


def report(policy: str, seed: int, jct_s: float | None, hit: float | None = 0.5, calls: float = 1.0) -> dict:
    spread = {"mean": jct_s, "p50": jct_s, "p95": jct_s, "p99": jct_s}
    return {
        "policy": policy, "seed": seed, "completed": 1, "cost_usd": 1.0, "jct_s": spread, "ttft_s": spread,
        "stretch": spread, "recomputed_tokens": 1, "gpu_s": 1.0, "slo_attainment": 1.0, "goodput_per_s": 1.0,
        "hit_ratio": hit, "call_imbalance": calls, "notes": [],
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
    [({"at_most": 1.5}, "<= 1.5", True), ({"at_most": 1.2}, "<= 1.2", False), ({"at_least": 1.25}, ">= 1.25", True)],
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


def test_behind_is_the_distance_to_the_best_in_points():
    reports = [
        report(policy, seed, 1.0, hit=hit)
        for seed in SEEDS
        for policy, hit in (("cold", 0.2), ("warm", 0.80), ("fabric", 0.79))
    ]
    judged = judge(Behind(name="g", setting="here", figure="hit_ratio", at_most=0.02), {"here": reports})
    assert (judged["rival"], judged["value"], judged["met"]) == ("warm", pytest.approx(0.01), True)
    ahead = judge(Behind(name="g", setting="here", figure="hit_ratio", at_most=0.02, policy="warm"), {"here": reports})
    assert ahead["value"] == pytest.approx(-0.01) and ahead["met"] is True

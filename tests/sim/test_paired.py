"""Means, gains and intervals over paired runs, against figures worked out by hand."""

from math import exp, log, sqrt

import pytest
from test_report import SPREAD, pipeline

from amf.sim.paired import FIGURES, Comparison, comparisons, interval, means, strongest, together
from amf.sim.report import ReportContext, RunRecords, summarise

SEEDS = (1, 2, 3)


def report(policy: str, seed: int, jct_s: float, slo: float | None = None) -> dict:
    context = ReportContext(policy=policy, workload="w", seed=seed, duration_s=10.0, gpus=1)
    made = summarise(RunRecords(pipelines=[pipeline(0, jct_s, alone=2.0)], calls=[]), context)
    return {**made, "slo_attainment": slo, "notes": []}


def reports(**jct_s: tuple[float, ...]) -> list[dict]:
    """One report per policy and seed, seed by seed."""
    return [report(policy, seed, times[i]) for i, seed in enumerate(SEEDS) for policy, times in jct_s.items()]


def found(figure: str, rows: list[dict], policy: str = "fabric") -> Comparison:
    return next(each for each in comparisons(rows, policy) if FIGURES[each.figure] == figure)


def test_the_gain_is_the_geometric_mean_and_its_interval_students():
    compared = found("JCT mean", reports(rival=(10.0, 30.0, 12.0), fabric=(5.0, 10.0, 6.0)))
    logs = [log(2), log(3), log(2)]
    mean = sum(logs) / 3
    half = 4.303 * sqrt(sum((each - mean) ** 2 for each in logs) / 2) / sqrt(3)
    assert compared.gain == pytest.approx(12 ** (1 / 3))
    assert (compared.low, compared.high) == (pytest.approx(exp(mean - half)), pytest.approx(exp(mean + half)))
    assert compared.verdict == "better"


def test_pairing_takes_out_what_is_hard_for_both():
    """Seeds that differ tenfold do not hide a steady gain of about 10 %."""
    compared = found("JCT mean", reports(rival=(11.0, 110.0, 1_110.0), fabric=(10.0, 100.0, 1_000.0)))
    assert compared.verdict == "better" and compared.low is not None and compared.low > 1.08


@pytest.mark.parametrize(
    ("fabric", "verdict"),
    [
        ((9.0, 12.0, 10.0), "inside the noise"),
        ((20.0, 21.0, 20.5), "worse"),
        ((5.0, 5.1, 4.9), "better"),
        ((10.0, 10.0, 10.0), "the same"),
        ((5.0, 5.0, 5.0), "no spread"),
    ],
)
def test_verdicts(fabric: tuple[float, ...], verdict: str):
    compared = found("JCT mean", reports(rival=(10.0, 10.0, 10.0), fabric=fabric))
    assert compared.verdict == verdict
    assert verdict in compared.line()
    assert ("[" in compared.line()) == (verdict in ("inside the noise", "worse", "better"))


def test_the_rival_is_the_strongest_in_each_figure():
    rows = [
        report("quick", 1, 8.0, slo=0.5), report("punctual", 1, 20.0, slo=0.8), report("fabric", 1, 10.0, slo=0.9),
    ]  # fmt: skip
    jct, slo = found("JCT mean", rows), found("SLO met", rows)
    assert (jct.rival, jct.gain, jct.verdict) == ("quick", pytest.approx(0.8), "one run")
    assert (slo.rival, slo.gain) == ("punctual", pytest.approx(1.125))


def test_a_figure_that_a_run_lacks_is_not_compared():
    rows = reports(rival=(10.0, 10.0, 10.0), fabric=(5.0, 5.0, 5.0))
    assert found("SLO met", rows) == Comparison(figure="slo_attainment", rival="rival")
    assert comparisons([report("fabric", 1, 5.0)], "fabric") == []


def test_intervals_need_two_runs_that_differ_and_narrow_with_more():
    assert interval([0.1]) is None and interval([0.1, 0.1]) is None
    few, many = interval([0.0, 1.0] * 2), interval([0.0, 1.0] * 20)
    assert few is not None and many is not None
    assert few[0] < many[0] < 0.5 < many[1] < few[1]
    assert many[1] - 0.5 == pytest.approx(2.023 * sqrt(0.25 * 40 / 39) / sqrt(40), rel=2e-3), "t of 39 degrees is 2.023"


def test_means_are_of_the_policy_and_null_where_a_run_is():
    rows = means([report("a", 1, 4.0, slo=0.5), report("b", 1, 1.0), report("a", 2, 8.0)])
    assert [row["policy"] for row in rows] == ["a", "b"]
    first = rows[0]
    assert first["seeds"] == [1, 2] and "seed" not in first
    assert first["jct_s"]["mean"] == 6.0 and first["bytes"]["weights"] is None and first["slo_attainment"] is None
    assert first["completed"] == 1 and isinstance(first["completed"], int)


def test_no_completed_pipeline_makes_no_gain():
    context = ReportContext(policy="fabric", workload="w", seed=1, duration_s=10.0)
    empty = {**summarise(RunRecords(pipelines=[], calls=[]), context), "notes": []}
    assert found("JCT mean", [report("rival", 1, 4.0), empty]).verdict == "not comparable"


def test_who_gives_up_slow_pipelines_is_no_rival_in_times():
    rows = reports(rival=(4.0, 4.0, 4.0), quitter=(1.0, 1.0, 1.0), fabric=(2.0, 2.0, 2.0))
    rows = [{**row, "pipelines": 2, "completed": 1 if row["policy"] == "quitter" else 2} for row in rows]
    assert found("JCT mean", rows).rival == "rival"
    by_slo = [{**row, "slo_attainment": 0.9 if row["policy"] == "quitter" else 0.5} for row in rows]
    assert found("SLO met", by_slo).rival == "quitter", "a share of all pipelines"
    assert found("JCT mean", [row for row in rows if row["policy"] != "rival"]).rival == "quitter", (
        "if there is no other"
    )


def late(**p99_s: tuple[float, ...]) -> list[dict]:
    """One report per policy and seed that are alike but for lateness."""
    rows = reports(**{name: (1.0,) * len(SEEDS) for name in p99_s})
    return [{**row, "lateness_s": dict.fromkeys(SPREAD, p99_s[row["policy"]][row["seed"] - 1])} for row in rows]


@pytest.mark.parametrize(
    ("fabric", "verdict", "gain"),
    [
        ((0.0, 4.0, 4.0), "better", None),
        ((0.0, 0.0, 0.0), "better", None),
        ((0.0, 20.0, 4.0), "inside the noise", None),
        ((5.0, 5.0, 5.0), "no spread", 2.0),
    ],
)
def test_lateness_of_nothing_has_a_verdict_and_no_gain(fabric: tuple[float, ...], verdict: str, gain: float | None):
    compared = strongest("lateness_s.p99", late(rival=(10.0, 10.0, 10.0), fabric=fabric), "fabric", ["rival"])
    assert (compared.verdict, compared.gain) == (verdict, gain and pytest.approx(gain))


def test_who_is_never_late_is_the_strongest():
    rows = late(punctual=(0.0, 0.0, 1.0), rival=(2.0, 2.0, 2.0), late=(9.0, 9.0, 9.0), fabric=(1.0, 1.0, 1.0))
    compared = strongest("lateness_s.p99", rows, "fabric", ["late", "rival", "punctual"])
    assert (compared.rival, compared.verdict, compared.gain) == ("punctual", "worse", None)
    both = strongest("lateness_s.p99", late(punctual=(0.0,) * 3, fabric=(0.0,) * 3), "fabric", ["punctual"])
    assert (both.verdict, both.gain) == ("the same", 1.0)


def test_settings_together_are_their_mean_for_each_policy_and_seed():
    here = [report("a", 1, 4.0, slo=0.5), report("b", 1, 1.0, slo=0.2), report("a", 2, 8.0, slo=1.0)]
    there = [report("a", 2, 2.0, slo=0.0), report("b", 1, 3.0), report("a", 1, 6.0, slo=0.7)]
    made = together("both", [here, there])
    assert [(row["policy"], row["seed"], row["workload"]) for row in made] == [
        ("a", 1, "both"), ("b", 1, "both"), ("a", 2, "both"),
    ]  # fmt: skip
    assert [row["jct_s"]["mean"] for row in made] == [5.0, 2.0, 5.0]
    assert [row["slo_attainment"] for row in made] == [pytest.approx(0.6), None, 0.5]
    with pytest.raises(KeyError):
        together("both", [here, there[1:]])


def test_who_refused_what_the_rival_completed_is_not_called_faster():
    rows = reports(rival=(4.0, 4.0, 4.0), fabric=(2.0, 2.0, 2.0))
    rows = [{**row, "pipelines": 100, "completed": 80 if row["policy"] == "fabric" else 100} for row in rows]
    assert found("JCT mean", rows) == Comparison(figure="jct_s.mean", rival="rival", verdict="completed fewer")
    assert found("hit ratio", rows).verdict != "completed fewer", "a ratio over what was answered"
    nearly = [{**row, "completed": 99} if row["policy"] == "fabric" else row for row in rows]
    assert found("JCT mean", nearly).gain == pytest.approx(2.0)

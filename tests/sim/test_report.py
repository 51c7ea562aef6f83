"""The report: its exact schema, sums worked out by hand, what is null, and how it is shown."""

import json
from math import inf

import pytest
from rich.console import Console

from amf.sim.plan import CallPlan, PipelinePlan, PromptPlan
from amf.sim.report import CallRecord, PipelineRecord, ReportContext, RunRecords, compare, judged, summarise, write_json
from amf.sim.report_table import COLUMNS, plain_lines, table

SPREAD = {"mean", "p50", "p95", "p99"}
SCHEMA = {
    "policy": None, "workload": None, "seed": None, "pipelines": None, "completed": None, "refused": None, "failed": None,
    "jct_s": SPREAD, "lateness_s": SPREAD, "ttft_s": SPREAD, "slo_attainment": None, "goodput_per_s": None,
    "prompt_tokens": None, "cached_tokens": None, "recomputed_tokens": None, "hit_ratio": None, "ideal_hit_ratio": None,
    "wasted_speculative_tokens": None, "speculation": {"needless_tokens", "wasted_share", "hit_ratio", "own", "others"},
    "gpu_s": None, "cost_usd": None,
    "bytes": {"weights", "kv", "reprefill", "serialisation", "churn"}, "stretch": SPREAD,
    "bound": {"jct_s", "critical_path_s", "srpt_mean_s", "edf_p99_s", "belady_hit_ratio"},
    "decision_us": {"p50", "p99"},
}  # fmt: skip


def pipeline(
    number: int,
    seconds: float,
    status="completed",
    met: bool | None = True,
    alone: float | None = 2.0,
    slo_s: float | None = None,
):
    return PipelineRecord(
        pipeline=f"g/{number}",
        graph="g",
        start_s=10.0,
        end_s=10.0 + seconds,
        status=status,
        met=met,
        standalone_s=alone,
        slo_s=slo_s,
    )


def call(number: int, index: int, prompt: int, cached: int | None, **changes) -> CallRecord:
    base = {"pipeline": f"g/{number}", "index": index, "hop": "h", "pool": "p", "start_s": 0.0, "end_s": 1.0}
    return CallRecord(
        **(base | {"ttft_s": 0.5, "prompt_tokens": prompt, "cached_tokens": cached, "output_tokens": 10} | changes)
    )


def context(**changes) -> ReportContext:
    base = {"policy": "fabric", "workload": "w", "seed": 7, "duration_s": 100.0, "gpus": 8, "dollars_per_hour": 36.0}
    return ReportContext(**(base | changes))


RECORDS = RunRecords(
    pipelines=[
        pipeline(0, 4.0),
        pipeline(1, 8.0, met=False),
        pipeline(2, 0.1, status="refused", met=False),
        pipeline(3, 5.0, status="failed", met=False),
        pipeline(4, 1.0, status="unfinished", met=None),
    ],
    calls=[
        call(0, 0, 1000, 0),
        call(0, 1, 2000, 900),
        call(1, 0, 1000, 600),
        call(3, 0, 500, None, status="failed", ttft_s=None, error="stall"),
    ],
)
IDEAL = {("g/0", 0): 0, ("g/0", 1): 1000, ("g/1", 0): 640, ("g/3", 0): 400}


def report(**changes):
    facts = {"ideal_cached": IDEAL, "kv_bytes_per_token": {"p": 2.0}} | changes
    return summarise(RECORDS, context(**facts))


def test_schema_is_exact():
    for made in (report(), summarise(RunRecords(pipelines=[], calls=[]), context())):
        assert list(made) == list(SCHEMA)
        for key, inner in SCHEMA.items():
            assert inner is None or set(made[key]) == inner


def test_sums_by_hand():
    made = report()
    assert (made["pipelines"], made["completed"], made["refused"], made["failed"]) == (5, 2, 1, 1)
    assert made["jct_s"]["mean"] == 6.0 and made["jct_s"]["p50"] == 6.0 and made["jct_s"]["p99"] == pytest.approx(7.96)
    assert made["stretch"]["mean"] == 3.0 and made["bound"]["jct_s"]["p50"] == 2.0
    assert made["slo_attainment"] == 0.25 and made["goodput_per_s"] == 0.01
    assert (made["prompt_tokens"], made["cached_tokens"], made["recomputed_tokens"]) == (4000, 1500, 140)
    assert made["hit_ratio"] == 0.375 and made["ideal_hit_ratio"] == pytest.approx(0.41)
    assert made["gpu_s"] == 800.0 and made["cost_usd"] == pytest.approx(1.0)
    assert made["bytes"] == {
        "weights": None, "kv": 2.0 * (4000 - 1500 + 30), "reprefill": 280.0, "serialisation": 4.0 * 4030, "churn": None,
    }  # fmt: skip


def test_lateness_is_of_completed_pipelines_with_a_deadline():
    ended = [
        pipeline(0, 4.0, slo_s=5.0),
        pipeline(1, 9.0, met=False, slo_s=5.0),
        pipeline(2, 70.0, status="failed", met=False, slo_s=5.0),
        pipeline(3, 70.0, met=None),
    ]
    late = summarise(RunRecords(pipelines=ended, calls=[]), context())["lateness_s"]
    assert late["mean"] == late["p50"] == 2.0 and late["p99"] == pytest.approx(3.96)
    assert set(report()["lateness_s"].values()) == {None}, "no deadlines"


@pytest.mark.parametrize(
    ("theirs", "ours", "ratio"),
    [(10.0, 4.0, 2.5), (0.0, 0.0, 1.0), (10.0, 0.0, inf), (0.0, 4.0, 0.0), (None, 4.0, None), (10.0, None, None)],
)
def test_lateness_of_nothing_is_compared(theirs: float | None, ours: float | None, ratio: float | None):
    baseline, own = report(), report()
    baseline["lateness_s"]["p99"], own["lateness_s"]["p99"] = theirs, ours
    assert compare(baseline, own)["lateness_s.p99"] == ratio


def test_caching_beyond_the_ideal_is_not_negative_recomputation():
    assert report(ideal_cached={})["recomputed_tokens"] == 0
    assert report(ideal_cached={})["ideal_hit_ratio"] is None


def test_what_a_run_cannot_know_is_null():
    silent = RunRecords(pipelines=[pipeline(0, 1.0, met=None, alone=None)], calls=[call(0, 0, 100, None)])
    made = summarise(silent, context())
    for key in ("slo_attainment", "goodput_per_s", "cached_tokens", "recomputed_tokens", "hit_ratio"):
        assert made[key] is None
    assert made["stretch"]["p50"] is None and made["decision_us"] == {"p50": None, "p99": None}
    assert made["bytes"]["kv"] is None and made["prompt_tokens"] == 100
    told = report(wasted_speculative_tokens=5, churn_bytes=10.0, decision_us_p50=40.0, decision_us_p99=90.0)
    assert (
        told["wasted_speculative_tokens"] == 5 and told["decision_us"]["p99"] == 90.0 and told["bytes"]["churn"] == 10.0
    )


def test_pipelines_are_judged_against_their_plan():
    prompt = PromptPlan(namespace="g/0", block_tokens=64, runs=((5000, 1),))
    plan = PipelinePlan(
        pipeline_id="g/0",
        graph="g",
        calls=(CallPlan(index=0, hop="h", pool="p", prompt=prompt, output_tokens=1),),
        slo_s=5.0,
        standalone_s=2.0,
    )
    assert judged(plan, 1.0, 6.0, "completed").met is True
    assert judged(plan, 1.0, 6.1, "completed").met is False
    assert judged(plan, 1.0, 2.0, "refused").met is False
    assert judged(plan, 1.0, 2.0, "unfinished").met is None
    assert judged(plan, 1.0, 9.0, "unfinished").met is False
    assert judged(plan, 1.0, 2.0, "failed").met is False


def test_compare_is_above_one_where_ours_is_better():
    baseline, ours = report(), report()
    ours["jct_s"]["p99"] /= 2
    ours["slo_attainment"] *= 3
    ours["hit_ratio"] = None
    gains = compare(baseline, ours)
    assert gains["jct_s.p99"] == pytest.approx(2.0) and gains["jct_s.p50"] == 1.0
    assert gains["slo_attainment"] == pytest.approx(3.0) and gains["hit_ratio"] is None
    assert gains["cost_per_pipeline"] == 1.0


def test_json_is_a_list_that_reads_back(tmp_path):
    path = tmp_path / "r.json"
    write_json(path, [report(), summarise(RunRecords(pipelines=[], calls=[]), context())])
    read = json.loads(path.read_text())
    assert read[0] == report() and read[1]["jct_s"]["p50"] is None


def test_tables_show_every_report():
    empty = summarise(RunRecords(pipelines=[], calls=[]), context(policy="round-robin"))
    console = Console(width=200, record=True, file=None, quiet=False)
    with console.capture() as capture:
        console.print(table([report(), empty]))
    shown = capture.get()
    assert "fabric" in shown and "round-robin" in shown and "25.0%" in shown and "37.5%/41.0%" in shown
    lines = plain_lines([report(), empty])
    assert len(lines) == 3 and lines[0].split()[0] == "policy" and len(lines[1].split()) == len(COLUMNS)
    assert "-" in lines[2].split() and "$0.5000" in lines[1].split()

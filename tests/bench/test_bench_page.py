"""The page: self-contained, escaped, with what the report says; and the words around it."""

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from bench_target import chain

from amf.bench.charts import lines
from amf.bench.client import Answer
from amf.bench.driver import CallRun, PipelineRun
from amf.bench.lag import lag_of
from amf.bench.page import Measured, Page, render_page
from amf.bench.records import Measurement, report_of, totals_of
from amf.bench.remarks import remarks
from amf.bench.sse import Usage
from amf.core.presets import MODEL_CONFIGS
from amf.demo.conclusion import conclusions
from amf.sim.plan import PipelinePlan, Workload
from amf.sim.scenario import PoolSpec

FLEET = (PoolSpec(model="llama-3.1-8b", workers=2),)


def finished(plan: PipelinePlan, *, call_s: float, cached: int = 30, fate: str = "completed") -> PipelineRun:
    """A run whose calls took `call_s` each, one after the other, first token half-way."""
    run = PipelineRun(plan=plan, start_s=1.0)
    at_s = 1.0
    for call in plan.calls:
        usage = Usage(prompt_tokens=100, cached_tokens=cached, output_tokens=3)
        end_s = at_s + call_s
        answer = Answer(outcome="ok", sent_s=at_s, end_s=end_s, usage=usage, worker="w<1>")
        first_s = at_s + call_s / 2
        run.calls.append(
            CallRun(plan=call, ready_s=at_s, due_s=at_s, sent_s=at_s, first_s=first_s, end_s=end_s, answer=answer)
        )
        at_s = end_s
    run.fate, run.end_s = fate, at_s  # type: ignore[assignment]
    return run


def measured(policy: str, call_s: float, cached: int = 30) -> Measured:
    plans = tuple(replace(chain(f"p<{index}>", 3), slo_s=30.0, standalone_s=5.0) for index in range(4))
    workload = Workload(name="<w>", pipelines=plans, concurrency=2, notes=("a note",))
    runs = [finished(plan, call_s=call_s, cached=cached) for plan in plans]
    run = Measurement(policy=policy, workload=workload, runs=runs, duration_s=10.0, time_scale=10.0)
    return Measured(row=report_of(run, FLEET), runs=runs, time_scale=10.0)


def test_the_report_is_in_modelled_seconds_and_has_every_field_of_the_schema() -> None:
    row = measured("fabric", 0.5).row
    assert row["jct_s"]["p50"] == pytest.approx(15.0) and row["ttft_s"]["p50"] == pytest.approx(2.5)
    assert (row["completed"], row["slo_attainment"], row["prompt_tokens"]) == (4, 1.0, 1200)
    assert row["gpu_s"] == 2 * 100.0
    schema = (
        "policy workload seed pipelines completed refused failed jct_s ttft_s slo_attainment goodput_per_s prompt_tokens "
        "cached_tokens recomputed_tokens hit_ratio ideal_hit_ratio wasted_speculative_tokens gpu_s cost_usd bytes stretch "
        "bound decision_us"
    )
    assert set(schema.split()) <= set(row)


def test_a_model_given_by_its_config_has_its_bytes_counted(tmp_path: Path) -> None:
    """Calls name their pool, and the pool of a config.json is named after its folder."""
    config = tmp_path / "llama-3.1-8b" / "config.json"
    config.parent.mkdir()
    config.write_text(json.dumps(MODEL_CONFIGS["llama-3.1-8b"]))
    plan = chain("p", 3)
    plan = replace(plan, calls=tuple(replace(call, pool="llama-3.1-8b") for call in plan.calls))
    run = finished(plan, call_s=0.5)
    workload = Workload(name="w", pipelines=(plan,), concurrency=1)
    measurement = Measurement(policy="fabric", workload=workload, runs=[run], duration_s=10.0, time_scale=1.0)
    by_config = report_of(measurement, (PoolSpec(model=str(config), workers=2),))
    assert by_config["bytes"] == report_of(measurement, FLEET)["bytes"] and by_config["bytes"]["kv"] > 0
    assert by_config["cost_usd"] == report_of(measurement, FLEET)["cost_usd"]


def test_the_page_fetches_nothing_and_escapes_everything() -> None:
    page = Page(title="<b>t</b>", summary=("s<s>",), notes=("n&n",))
    html = render_page(page, [measured("fabric", 0.5), measured("<other>", 1.0)])
    assert "<script" not in html and "@import" not in html and "url(" not in html
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?(?!#)", html)
    for raw in ("<b>t", "s<s>", "n&n", "<other>", "p<0>", "w<1>", "<w>"):
        assert raw not in html
    drawings = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert all(ElementTree.fromstring(drawing).tag.endswith("svg") for drawing in drawings)
    assert len(drawings) == 5 + 4  # five charts, two slowest pipelines of each policy
    assert "&lt;other&gt;" in html and "15.0" in html


def test_an_empty_run_still_has_a_page() -> None:
    workload = Workload(name="w", pipelines=(chain("p", 2),), concurrency=1)
    run = Measurement(policy="x", workload=workload, runs=[], duration_s=1.0, time_scale=1.0)
    row = report_of(run, FLEET)
    assert row["not_started"] == 1 and row["jct_s"]["p50"] is None
    assert "<table>" in render_page(Page(title="t", summary=(), notes=()), [Measured(row=row, runs=[], time_scale=1.0)])


def test_unfinished_pipelines_are_told_with_their_age() -> None:
    plans = tuple(replace(chain(f"p{index}", 2), slo_s=100.0) for index in range(2))
    runs = [finished(plans[0], call_s=1.0), finished(plans[1], call_s=2.0, fate="unfinished")]
    workload = Workload(name="w", pipelines=plans, concurrency=1)
    row = report_of(Measurement(policy="x", workload=workload, runs=runs, duration_s=9.0, time_scale=10.0), FLEET)
    assert (row["completed"], row["unfinished"], row["unfinished_age_s"]) == (1, 1, [40.0])
    assert row["jct_s"]["p99"] == pytest.approx(20.0) and row["slo_attainment"] == 1.0
    (line,) = remarks(row)
    assert "1 pipelines were cut off unfinished, 40 to 40 s old" in line
    assert totals_of(runs).prompt_tokens == 400


def test_the_conclusion_says_where_the_fabric_is_not_better() -> None:
    rows = [measured("fabric", 0.5, cached=0).row, measured("session-affinity", 1.0, cached=30).row]
    (line,) = conclusions(rows)
    _, better, same, worse = line.split("\n  ")
    assert "completion time p99 2.00x" in better and "deadlines met" in same
    assert worse.startswith("NOT better: tokens recomputed")
    assert conclusions(rows[1:]) == []


def test_a_late_driver_is_called_the_bottleneck() -> None:
    calls = finished(chain("p", 3), call_s=1.0).calls
    assert not lag_of(calls).worrying
    late = [replace(call, due_s=call.due_s - 0.2) for call in calls]
    assert lag_of(late).max_s == pytest.approx(0.2) and "TOO HIGH" in lag_of(late).line(30.0)
    assert "6.0 s modelled" in lag_of(late).line(30.0)


def test_a_line_that_only_rounding_bends_is_drawn():
    """Pygal looked for ever for a scale of such a difference."""
    drawn = lines("flat", "load", {"a": [(0.5, 17.3), (0.9, 17.3 + 1e-14), (1.1, None)], "b": []})
    assert drawn.startswith("<svg") and "17.3" in drawn

"""One self-contained HTML page for a set of measured runs: table, charts, the slowest pipelines. Nothing is fetched.

Every text that came from a file, a target or a user is escaped; only the SVG made here is inserted as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from amf.bench.charts import bars, cdf
from amf.bench.driver import PipelineRun
from amf.bench.page_template import TEMPLATE
from amf.bench.waterfall import LEGEND, waterfall_svg
from amf.sim.report import Report

SLOWEST = 2
_QUANTILES = ("p50", "p95", "p99")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One policy on one workload: the report's row (docs: report schema) and the runs behind it."""

    row: Report
    runs: Sequence[PipelineRun]
    time_scale: float

    def jct_s(self) -> list[float]:
        """Modelled seconds of completed pipelines, fastest first."""
        return sorted(_seconds(run) * self.time_scale for run in self.runs if run.fate == "completed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """`charts`: SVG made here, before the sections."""

    title: str
    summary: Sequence[str]
    notes: Sequence[str]
    charts: Sequence[str] = ()


def write_page(path: Path, page: Page, measured: Sequence[Measured]) -> None:
    """Raises OSError if the file cannot be written."""
    path.write_text(render_page(page, measured), encoding="utf-8")


def render_page(page: Page, measured: Sequence[Measured]) -> str:
    workloads = list(dict.fromkeys(str(each.row["workload"]) for each in measured))
    sections = [_section(name, [each for each in measured if each.row["workload"] == name]) for name in workloads]
    template = Environment(autoescape=True).from_string(TEMPLATE)
    return template.render(
        title=page.title,
        summary=page.summary,
        notes=page.notes,
        charts=[Markup(chart) for chart in page.charts],
        sections=sections,
        legend=LEGEND,
    )


def _section(workload: str, measured: Sequence[Measured]) -> dict[str, Any]:
    rows = [each.row for each in measured]
    policies = [str(row["policy"]) for row in rows]
    return {
        "workload": workload,
        "heads": [head for head, _ in _COLUMNS],
        "rows": [[_cell(column(row)) for _, column in _COLUMNS] for row in rows],
        "charts": [
            Markup(chart)
            for chart in (
                cdf(
                    "Pipeline completion time",
                    "seconds",
                    {p: m.jct_s() for p, m in zip(policies, measured, strict=True)},
                ),
                bars(
                    "Time to first token, seconds",
                    policies,
                    {name: [r["ttft_s"].get(name) for r in rows] for name in _QUANTILES},
                ),
                bars("Deadlines met", policies, {"share": [r["slo_attainment"] for r in rows]}),
                bars(
                    "Prefix hit ratio",
                    policies,
                    {"measured": [r["hit_ratio"] for r in rows], "ideal": [r["ideal_hit_ratio"] for r in rows]},
                ),
                bars("Prompt tokens recomputed", policies, {"recomputed": [r["recomputed_tokens"] for r in rows]}),
            )
        ],
        "slowest": [item for each in measured for item in _slowest(each)],
    }


def _slowest(measured: Measured) -> list[dict[str, Any]]:
    done = [run for run in measured.runs if run.fate == "completed" and run.calls]
    return [
        {
            "title": f"{measured.row['policy']}: {run.plan.pipeline_id}, {_seconds(run) * measured.time_scale:.1f} s",
            "svg": Markup(waterfall_svg(run, measured.time_scale)),
        }
        for run in sorted(done, key=_seconds, reverse=True)[:SLOWEST]
    ]


def _seconds(run: PipelineRun) -> float:
    return (run.end_s or run.start_s) - run.start_s


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.3f}" if abs(value) < 10 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


_COLUMNS: tuple[tuple[str, Any], ...] = (
    ("policy", lambda row: row["policy"]),
    ("pipelines", lambda row: row["pipelines"]),
    ("completed", lambda row: row["completed"]),
    ("refused", lambda row: row["refused"]),
    ("failed", lambda row: row["failed"]),
    ("unfinished", lambda row: row.get("unfinished")),
    ("JCT p50 s", lambda row: row["jct_s"]["p50"]),
    ("JCT p99 s", lambda row: row["jct_s"]["p99"]),
    ("TTFT p50 s", lambda row: row["ttft_s"]["p50"]),
    ("TTFT p99 s", lambda row: row["ttft_s"]["p99"]),
    ("SLO met", lambda row: row["slo_attainment"]),
    ("hit", lambda row: row["hit_ratio"]),
    ("ideal hit", lambda row: row["ideal_hit_ratio"]),
    ("recomputed tokens", lambda row: row["recomputed_tokens"]),
    ("$ / pipeline", lambda row: row["cost_usd"] / row["completed"] if row["completed"] and row["cost_usd"] else None),
)

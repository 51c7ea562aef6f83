"""Reports side by side: a rich table for a terminal, plain lines for a pipe."""

from collections.abc import Sequence

from rich.table import Table

from amf.sim.report import Report, cost_per_pipeline
from amf.sim.text_table import TextTable

COLUMNS = (
    "policy", "workload", "pipelines", "JCT p50 s", "p99 s", "SLO met", "TTFT p50 s", "p99 s", "hit of ideal",
    "recomputed", "$/pipeline", "refused", "failed",
)  # fmt: skip


def table(reports: Sequence[Report]) -> Table:
    """One row per report, in the order given."""
    grid = _table(reports).grid()
    for column in grid.columns[:2]:
        column.no_wrap = True
    return grid


def plain_lines(reports: Sequence[Report]) -> list[str]:
    """The same columns, aligned with spaces, the header first."""
    return _table(reports).lines(one_word=True)


def _table(reports: Sequence[Report]) -> TextTable:
    return TextTable(COLUMNS, [cells(report) for report in reports])


def cells(report: Report) -> tuple[str, ...]:
    """A report's row. A dash stands for what the run does not know."""
    jct, ttft = report["jct_s"], report["ttft_s"]
    return (
        report["policy"],
        report["workload"],
        str(report["pipelines"]),
        _seconds(jct["p50"]),
        _seconds(jct["p99"]),
        _percent(report["slo_attainment"]),
        _seconds(ttft["p50"]),
        _seconds(ttft["p99"]),
        f"{_percent(report['hit_ratio'])}/{_percent(report['ideal_hit_ratio'])}",
        _tokens(report["recomputed_tokens"]),
        _dollars(cost_per_pipeline(report)),
        str(report["refused"]),
        str(report["failed"]),
    )


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _tokens(count: int | None) -> str:
    if count is None:
        return "-"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)


def _dollars(value: float | None) -> str:
    return "-" if value is None else f"${value:.4f}" if value < 1 else f"${value:.2f}"

"""The table on wide and narrow terminals and in pipes: every figure stays readable."""

from io import StringIO

import pytest
from rich.console import Console

from amf.bench.show import show
from amf.sim.plan import PipelinePlan
from amf.sim.report import Report, ReportContext, RunRecords, judged, summarise


def report(policy: str, workload: str) -> Report:
    plan = PipelinePlan(pipeline_id="p", graph="g", calls=(), slo_s=50.0)
    records = RunRecords(pipelines=[judged(plan, 0.0, 41.25, "completed")], calls=[])
    context = ReportContext(policy=policy, workload=workload, seed=1, duration_s=3600.0, gpus=1, dollars_per_hour=3.5)
    return summarise(records, context)


@pytest.mark.parametrize(("terminal", "width"), [(True, 200), (True, 70), (False, 80)])
def test_every_figure_is_readable(terminal: bool, width: int) -> None:
    console = Console(file=StringIO(), force_terminal=terminal, width=width, color_system=None)
    reports = [report(policy, workload) for policy in ("round-robin", "fabric") for workload in ("b-work", "a-work")]
    show(reports, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("41.2") == 8 and text.count("$3.50") == 4 and "…" not in text
    assert text.index("a-work") < text.index("b-work") and text.count("fabric") == 2
    if terminal:
        assert max(len(line) for line in text.splitlines()) <= width

"""Reports on the screen: one table where it fits, one per workload turned on its side where it does not, lines in a pipe."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from amf.sim.report import Report
from amf.sim.report_table import COLUMNS, cells, plain_lines, table

_UNBOUNDED = 10_000


def show(reports: Sequence[Report], console: Console) -> None:
    """Reports of one workload stand together."""
    ordered = sorted(reports, key=lambda report: str(report["workload"]))
    if not console.is_terminal:
        console.out("\n".join(plain_lines(ordered)), highlight=False)
        return
    wide = table(ordered)
    unbounded = console.options.update(max_width=_UNBOUNDED)
    if console.measure(wide, options=unbounded).maximum <= console.width:
        console.print(wide)
        return
    for workload in dict.fromkeys(report["workload"] for report in ordered):
        console.print(_on_its_side([report for report in ordered if report["workload"] == workload]))


def _on_its_side(reports: Sequence[Report]) -> Table:
    """A row a figure, a column a policy."""
    grid = Table(header_style="bold", pad_edge=False, title=str(reports[0]["workload"]))
    names, *rows = zip(COLUMNS, *(cells(report) for report in reports), strict=True)
    for number, name in enumerate(names):
        grid.add_column(name, justify="right" if number else "left")
    for row in rows:
        if row[0] != "workload":
            grid.add_row(*row)
    return grid

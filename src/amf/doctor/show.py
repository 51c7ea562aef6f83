"""Findings as a table, grouped by what they are about, each with its remedy, and one line that sums them up."""

from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from amf.doctor.findings import Finding, Level, count
from amf.workers.show import put

_STYLES: dict[Level, str] = {"ok": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}


def show(findings: Sequence[Finding], console: Console) -> None:
    for subject, group in groupby(findings, key=lambda finding: finding.subject):
        table = Table(
            box=None, show_header=False, pad_edge=False, title=Text(subject, style="bold"), title_justify="left"
        )
        for _ in range(2):
            table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for finding in group:
            level = Text(finding.level, style=_STYLES[finding.level])
            table.add_row(level, Text(finding.check), Text(finding.seen))
            if finding.fix and finding.level != "ok":
                table.add_row("", "", Text(f"-> {finding.fix}", style="italic"))
        put(table, console)
        console.print()
    console.print(Text(summary(findings)))


def summary(findings: Sequence[Finding]) -> str:
    return ", ".join(f"{number} {level}" for level, number in count(findings).items())

"""Reports of `amf cache` for people."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from amf.workers.show import put


def show_lookup(report: dict[str, Any], console: Console) -> None:
    total, longest = report["prompt_tokens"], report["longest_tokens"]
    console.print(Text(f"The prompt has {total:,} tokens."))
    if not report["held"]:
        console.print("No instance holds a chunk of it.")
        return
    rows = [
        (each["instance"], ", ".join(each["workers"]) or "-", each["location"], f"{each['tokens']:,}")
        for each in report["held"]
    ]
    put(_table(("instance", "worker", "location", "tokens"), rows), console)
    rest = "" if longest == total else f" Beyond {longest:,} tokens nobody holds anything."
    console.print(Text(f"Others may hold the same: the controller names one instance for each chunk.{rest}"))


def show_instances(report: dict[str, Any], console: Console) -> None:
    if report["ranks"]:
        rows = [
            (each["instance"], str(each["rank"]), ", ".join(each["workers"]) or "-", each["address"], _time(each))
            for each in report["ranks"]
        ]
        put(_table(("instance", "rank", "worker", "address", "last heartbeat"), rows), console)
    else:
        console.print("No instance is registered.")
    if report["missing"]:
        console.print(Text(f"Configured and not registered: {', '.join(report['missing'])}."))


def _time(rank: dict[str, Any]) -> str:
    try:
        return datetime.fromtimestamp(rank["heartbeat_s"], UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return "?"


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(header_style="bold", pad_edge=False, box=None)
    for name in names:
        table.add_column(name, overflow="fold", justify="right" if name in ("tokens", "rank") else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    return table

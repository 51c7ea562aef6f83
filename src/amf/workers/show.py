"""Two tables (what each worker is, what the fabric believes of it), what is missing, and the KV families."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from amf.engines.family import Apart, Family
from amf.workers.kin import families_of
from amf.workers.lacks import lacks_of, offers

_UNBOUNDED = 1_000_000
_MAX_APART = 20  # pairs of families that are shown
_STYLES = {"up": "green", "lost": "red", "connecting": "yellow", "draining": "yellow"}
_GRADES = {"partial": "the same values in another form", "unknown": "not known to be alike", "none": "other values"}


def show(workers: Sequence[Mapping[str, Any]], console: Console) -> None:
    """In a pipe, lines are as long as they need to be."""
    if not workers:
        console.print("The gateway has no workers: add one with POST /amf/v1/workers, or amf serve --worker URL.")
        return
    for table in (_what_they_are(workers), _what_is_believed(workers)):
        put(table, console)
        console.print()
    reached = sum(bool(worker.get("capabilities")) for worker in workers)
    for lack in lacks_of(workers):
        who = f"all {reached}" if len(lack.workers) == reached > 2 else ", ".join(lack.workers)
        console.print(Text(f"No {lack.name} ({who}): {lack.instead}."))
    console.print()
    _show_families(*families_of(workers), console)


def console_for(terminal: Console) -> Console:
    """The terminal, or, where the output goes to a pipe or file, one that wraps nothing."""
    return terminal if terminal.is_terminal else Console(file=terminal.file, width=_UNBOUNDED)


def put(table: Table, console: Console) -> None:
    """Print it; in a pipe without the spaces that fill up its lines."""
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        console.print(Text(line.rstrip()))


def _what_they_are(workers: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("worker", "engine", "models", "status", "offers", right=("KV tokens", "block"))
    for worker in workers:
        engine = " ".join(str(part) for part in (worker.get("engine"), worker.get("version")) if part)
        status = str(worker.get("status", "?"))
        reason = f" ({worker['reason']})" if worker.get("reason") else ""
        table.add_row(
            _plain(worker["name"]),
            _plain(engine or "?"),
            _plain(", ".join(worker.get("models") or []) or worker.get("pool") or "?"),
            Text(status + reason, style=_STYLES.get(status, "")),
            _plain(offers(worker.get("capabilities"), worker.get("lmcache_instance"))),
            _number(worker.get("kv_tokens")),
            _number(worker.get("block_tokens")),
        )
    return table


def _what_is_believed(workers: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("worker", "prompts", right=("in flight", "pace", "warm", "protected", "residents", "drift"))
    for worker in workers:
        belief = worker.get("fabric") or {}
        table.add_row(
            _plain(worker["name"]),
            "exact" if worker.get("exact") else "text",
            _number(worker.get("in_flight")),
            _pace(belief),
            _number(belief.get("believed_warm_tokens")),
            _number(belief.get("protected_tokens")),
            _number(belief.get("resident_pipelines")),
            _drift(belief.get("drift")),
        )
    return table


def _pace(belief: Mapping[str, Any]) -> str:
    """Seconds taken over seconds expected of the profile: prefill, decode."""
    scales = [belief.get(name) for name in ("prefill_scale", "decode_scale")]
    return " ".join("-" if scale is None else f"x{scale:.2f}" for scale in scales)


def _drift(drift: Mapping[str, Any] | None) -> str:
    """Tokens believed warm and not found, and found though not believed."""
    if not drift or not drift.get("calls"):
        return "-"
    over, under = drift["overestimated_tokens"], drift["underestimated_tokens"]
    return f"-{over:,} +{under:,} in {drift['calls']:,} calls"


def _show_families(families: Sequence[Family], apart: Sequence[Apart], console: Console) -> None:
    console.print(Text("KV families: workers that could read each other's KV memory", style="bold"))
    for number, family in enumerate(families, start=1):
        console.print(Text(f"  {number}  {', '.join(family.workers)}"))
    numbers = {family.workers[0]: number for number, family in enumerate(families, start=1)}
    for each in apart[:_MAX_APART]:
        grade, reasons = each.match.grade, "; ".join(each.match.reasons)
        console.print(Text(f"  {numbers[each.one]} | {numbers[each.other]}: {_GRADES[grade]} ({reasons})"))
    if len(apart) > _MAX_APART:
        console.print(Text(f"  and {len(apart) - _MAX_APART:,} more pairs: --json has all"))


def _table(*left: str, right: Sequence[str]) -> Table:
    table = Table(header_style="bold", pad_edge=False, box=None)
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right")
    return table


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "?"


def _plain(text: str) -> Text:
    """Names are no markup."""
    return Text(text)

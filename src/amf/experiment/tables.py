"""A study's document as tables of text, for the terminal, the page and Markdown alike."""

from collections.abc import Callable, Sequence
from typing import Any

from amf.experiment.goals import figure_of
from amf.experiment.run import Document
from amf.sim.paired import FIGURES
from amf.sim.text_table import TextTable

_WORDS = {True: "yes", False: "NO", None: "unknown"}
_SPECULATION = {
    "needless_tokens": "needless tokens",
    "wasted_share": "wasted share",
    "hit_ratio": "hit ratio of what is used",
}
_SPREADS = {"jct_s": "JCT", "ttft_s": "TTFT", "stretch": "stretch", "lateness_s": "lateness"}


def goal_table(document: Document) -> TextTable:
    heads = ("goal", "rival", "wanted", "value", "95 % interval", "met", "difference")
    rows = [
        (
            goal["name"],
            goal["rival"] or "-",
            goal["goal"],
            number(goal["value"]),
            _interval(goal["ci95"]),
            _WORDS[goal["met"]],
            goal["verdict"] or "-",
        )
        for goal in document["goals"]
    ]
    return TextTable(heads, tuple(rows))


def gain_table(document: Document) -> TextTable:
    """The fabric against the strongest rival: one row for each setting, one column for each figure."""
    settings = list(dict.fromkeys(each["setting"] for each in document["comparisons"]))
    found = {(each["setting"], each["figure"]): each for each in document["comparisons"]}
    rows = [(setting, *(_gain(found.get((setting, figure))) for figure in FIGURES)) for setting in settings]
    return TextTable(("setting", *FIGURES.values()), tuple(rows), texts=1)


def row_table(document: Document) -> TextTable:
    rows = document["rows"]
    columns = [(head, cell) for head, cell in _COLUMNS if any(cell(row) != "-" for row in rows)]
    cells = [(row["setting"], row["policy"], *(cell(row) for _, cell in columns)) for row in rows]
    return TextTable(("setting", "policy", *(head for head, _ in columns)), tuple(cells))


def figure_name(figure: str) -> str:
    """What to call a dotted field."""
    if figure in FIGURES:
        return FIGURES[figure]
    head, _, part = figure.partition(".")
    if head == "speculation":
        return _SPECULATION.get(part, f"JCT of {part.replace('.', ' ')}")
    if head == "measured":
        return {"calls_per_s": "simulated calls/s", "peak_bytes": "memory, bytes"}[part]
    if head == "calibration":
        return f"share within the stated {part}"
    return f"{_SPREADS.get(head, head.replace('_', ' '))} {part}".strip()


def number(value: float | None) -> str:
    """Three digits or so."""
    if value is None:
        return "-"
    size = abs(value)
    return (
        f"{value:,.0f}"
        if size >= 1_000
        else f"{value:.0f}"
        if size >= 100
        else f"{value:.1f}"
        if size >= 10
        else f"{value:.3g}"
    )


def _gain(compared: dict[str, Any] | None) -> str:
    if compared is None or compared["verdict"] == "not comparable":
        return "-"
    if compared["gain"] is None:
        return str(compared["verdict"])
    mark = {"better": "", "the same": "", "no spread": "", "one run": ""}.get(compared["verdict"])
    if mark is None:
        mark = " (noise)" if compared["verdict"] == "inside the noise" else " (worse)"
    return f"{compared['gain']:.2f}{mark}"


def _interval(ci95: Sequence[float] | None) -> str:
    return "-" if ci95 is None else f"{number(ci95[0])} to {number(ci95[1])}"


def _at(figure: str) -> Callable[[dict[str, Any]], str]:
    def cell(row: dict[str, Any]) -> str:
        return number(figure_of(row, figure)) if figure.split(".")[0] in row else "-"

    return cell


def _percent(figure: str) -> Callable[[dict[str, Any]], str]:
    def cell(row: dict[str, Any]) -> str:
        value = figure_of(row, figure) if figure.split(".")[0] in row else None
        return "-" if value is None else f"{value:.1%}"

    return cell


def _completed(row: dict[str, Any]) -> str:
    return f"{row['completed']:,g} of {row['pipelines']:,g}"


_COLUMNS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("completed", _completed),
    ("JCT mean s", _at("jct_s.mean")),
    ("JCT p99 s", _at("jct_s.p99")),
    ("stretch p95", _at("stretch.p95")),
    ("stretch p99", _at("stretch.p99")),
    ("TTFT mean s", _at("ttft_s.mean")),
    ("TTFT p99 s", _at("ttft_s.p99")),
    ("SLO met", _percent("slo_attainment")),
    ("late p99 s", _at("lateness_s.p99")),
    ("goodput /s", _at("goodput_per_s")),
    ("hit", _percent("hit_ratio")),
    ("ideal hit", _percent("ideal_hit_ratio")),
    ("imbalance", _at("call_imbalance")),
    ("own p50 s", _at("speculation.own.p50")),
    ("own p99 s", _at("speculation.own.p99")),
    ("others mean s", _at("speculation.others.mean")),
    ("others p99 s", _at("speculation.others.p99")),
    ("wasted", _percent("speculation.wasted_share")),
    ("needless tokens", _at("speculation.needless_tokens")),
    ("hit of used", _percent("speculation.hit_ratio")),
    ("within p50", _percent("calibration.p50")),
    ("within p90", _percent("calibration.p90")),
    ("within p99", _percent("calibration.p99")),
    ("p90, known", _percent("calibration.p90_known")),
    ("stated", _at("calibration.predictions")),
    ("cold", _at("calibration.cold")),
    ("evidence", _at("calibration.evidence")),
    ("live groups", _at("live_groups")),
    ("hops/s", _at("hops_per_s")),
    ("wait s", _at("wait_s")),
    ("free", _percent("free_share")),
    ("longest run of free", _percent("largest_free_share")),
    ("failed for a run", _percent("failed_contiguity")),
    ("failed for room", _percent("failed_room")),
    ("unused", _percent("unused_share")),
    ("moved GB/s", _at("moved_gb_per_s")),
    ("transfers/GB", _at("transfers_per_gb")),
    ("displaced", _percent("displaced_share")),
    ("recomputed s/s", _at("recomputed_share")),
    ("simulated calls/s", _at("measured.calls_per_s")),
    ("memory bytes", _at("measured.peak_bytes")),
)

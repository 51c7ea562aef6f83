"""What was learned of a call graph, as a table for people: `GET /amf/v1/graphs/{name}?format=text`."""

from collections.abc import Mapping, Sequence
from typing import Any

_HOPS = ("hop", "model", "seen", "service p50", "p90", "output p50", "p90", "gap p50", "reached", "calls", "room after")
_EDGES = ("edge", "declared", "seen", "of", "used")


def learned_text(name: str, learned: Mapping[str, Any] | None) -> str:
    """`learned` as `amf.core.state.learned.of_graph` says it; None where the policy in use learns nothing."""
    if learned is None:
        return f"{name}: nothing is learned of it\n"
    pipelines = learned["pipelines"]
    lines = [
        name,
        f"    {_whole(pipelines)}; correlation of hop times {learned['correlation']:.2f}, factor {learned['factor']:.2f}",
    ]
    lines += ["", *_table(_HOPS, [_hop(each) for each in learned["hops"]])]
    if learned["edges"]:
        lines += ["", *_table(_EDGES, [_edge(each) for each in learned["edges"]])]
    return "\n".join(lines) + "\n"


def _whole(pipelines: Mapping[str, Any] | None) -> str:
    if pipelines is None:
        return "no pipeline has ended"
    work = ", ".join(f"{pool} {seconds:.2f}s" for pool, seconds in pipelines["work_s"].items())
    belief = (
        f"admission reckons with it, margin {pipelines['margin']:.2f}"
        if pipelines["believed"]
        else "too few for admission"
    )
    ended = f"{pipelines['ended']} pipelines ended, {pipelines['with_deadline']} with a deadline ({belief})"
    return f"{ended}; path {pipelines['path_s']:.2f}s; work {work}"


def _hop(hop: Mapping[str, Any]) -> Sequence[str]:
    service, output, gap = hop["service_s"], hop["output_tokens"], hop["gap_s"]
    return (
        hop["hop"],
        hop["pool"],
        f"{service['evidence']:.0f} {service['source']}",
        _seconds(service["p50"]),
        _seconds(service["p90"]),
        _number(output["p50"]),
        _number(output["p90"]),
        _seconds(gap["p50"]),
        _share(hop["reached"]),
        _number(hop["calls"]["value"], 2) if hop["calls"] else "-",
        _seconds(hop["room_after_s"]),
    )


def _edge(edge: Mapping[str, Any]) -> Sequence[str]:
    taken = edge["taken"]
    return (
        f"{edge['from']} -> {edge['to']}",
        f"{edge['declared']:.0%}",
        _share(taken),
        f"{taken['evidence']:.0f}" if taken else "-",
        f"{edge['used']:.0%}",
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    return [
        "    "
        + "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (heads, *rows)
    ]


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}s"


def _number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _share(odds: Mapping[str, float] | None) -> str:
    return f"{odds['value']:.0%}" if odds else "-"

"""The figures as Markdown, between two marks of a page whose words are written by hand."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

BEGIN = "<!-- figures: written by make fidelity -->"
END = "<!-- end of figures -->"


def write_page(page: Path, report: Mapping[str, Any]) -> None:
    """Replace what stands between the marks. Raises ValueError if they are not there."""
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} lacks the marks {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n\n{markdown(report)}\n{END}{after}", encoding="utf-8")


def markdown(report: Mapping[str, Any]) -> str:
    parts = []
    if behaviour := report.get("behaviour"):
        parts.append(_behaviour(behaviour))
    if pace := report.get("pace"):
        parts.append(_pace(pace))
    return "\n".join(parts)


def _machine(machine: Mapping[str, Any]) -> str:
    return (
        f"{machine['date']}, {machine['cpu']}, {machine['cores']} cores, load {machine['load_1_min']} after the run; "
        f"vLLM {machine['vllm']}, torch {machine['torch']}, Python {machine['python']}."
    )


def _behaviour(behaviour: Mapping[str, Any]) -> str:
    lines = [
        "### Behaviour",
        "",
        _machine(behaviour["machine"]),
        "",
        "Equal of all; where the two engines' totals differ, both are given, the real one's first.",
        "",
        "| Stream | Seed | Requests: cached tokens | Pairs: order of ends | Iterations: tokens | Evictions: order "
        "| Stored blocks | Iterations: blocks | Preemptions | Exact |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in behaviour["streams"].items():
        cells = [
            f"`{name}`",
            str(one["seed"]),
            f"{one['cached_equal']}/{one['requests']}",
            f"{one['pairs_in_order']}+{one['pairs_together']}/{one['pairs']}",
            *(_equal(one[f"{what}_equal"], one[what]) for what in ("iterations", "evictions", "stores", "steps")),
            str(one["preemptions"][0])
            if len(set(one["preemptions"])) == 1
            else "≠ ".join(map(str, one["preemptions"])),
            "yes" if one["exact"] else "no",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", *(f"- `{name}`: {one['shows']}." for name, one in behaviour["streams"].items()), ""]
    return "\n".join(lines)


def _equal(equal: int, totals: tuple[int, int]) -> str:
    real, simulated = totals
    return f"{equal}/{real}" if real == simulated else f"{equal}/({real}, {simulated})"


def _pace(pace: Mapping[str, Any]) -> str:
    fit, alone, together = pace["fit"], pace["alone"], pace["together"]
    lines = [
        "### Seconds",
        "",
        _machine(pace["machine"]),
        "",
        f"Seed {pace['seed']}. Fitted: {1e3 * fit['iteration_s']:.2f} ms an iteration, "
        f"{1e6 * fit['token_s']:.1f} µs a token, {1e9 * fit['pair_s']:.1f} ns a (query, key) pair, "
        f"{1e3 * fit['way_s']:.1f} ms on the way. Medians measured on the others: {_medians(alone)} when alone, "
        f"{_medians(together)} with up to {together['most_at_once']} at once.",
        "",
        "| Requests | Predicted | Relative error: mean | Median | 95th percentile | Mean with its sign |",
        "|---|---|---|---|---|---|",
    ]
    for name, part in (("fitted, alone", fit), ("others, alone", alone), ("others, together", together)):
        for what, one in (("first token", part["first_token"]), ("end", part["total"])):
            shares = f"{one['mean']:.1%} | {one['median']:.1%} | {one['p95']:.1%} | {one['bias']:+.1%}"
            lines.append(f"| {part['requests']} {name} | {what} | {shares} |")
    batches = pace["decode_iteration_s"]
    lines += [
        "",
        "Iterations of nothing but decodes, median by the engine's own log:",
        "",
        "| Sequences | " + " | ".join(map(str, batches)) + " |",
        "|---" * (len(batches) + 1) + "|",
        "| ms | " + " | ".join(f"{1e3 * seconds:.2f}" for seconds in batches.values()) + " |",
        "",
    ]
    return "\n".join(lines)


def _medians(part: Mapping[str, Any]) -> str:
    return f"{1e3 * part['first_token_s']:.0f} ms to the first token and {1e3 * part['total_s']:.0f} ms to the end"

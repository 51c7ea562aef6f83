"""The measured rows in words: where the fabric is better than each other policy, where it is the same, where it is not.

One run of one seed: differences within NOISE are called none.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NOISE = 0.05
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Metric:
    """`value` reads it from a row (None: not measured there); `more_is_better` says which way is good."""

    name: str
    value: Callable[[Row], float | None]
    more_is_better: bool = False


def _per_pipeline(row: Row) -> float | None:
    return row["cost_usd"] / row["completed"] if row["completed"] and row["cost_usd"] else None


_METRICS = (
    _Metric("completion time p50", lambda row: row["jct_s"]["p50"]),
    _Metric("completion time p99", lambda row: row["jct_s"]["p99"]),
    _Metric("first token p50", lambda row: row["ttft_s"]["p50"]),
    _Metric("first token p99", lambda row: row["ttft_s"]["p99"]),
    _Metric("deadlines met", lambda row: row["slo_attainment"], more_is_better=True),
    _Metric("tokens recomputed", lambda row: row["recomputed_tokens"]),
    _Metric("$ per pipeline", _per_pipeline),
    _Metric("pipelines completed", lambda row: row["completed"], more_is_better=True),
)


def conclusions(rows: Sequence[Row], ours: str = "fabric") -> list[str]:
    """One paragraph of several lines per workload and other policy; empty if `ours` was not run."""
    lines: list[str] = []
    for workload in dict.fromkeys(row["workload"] for row in rows):
        here = {row["policy"]: row for row in rows if row["workload"] == workload}
        if ours in here:
            lines += [_compare(here[ours], row) for policy, row in here.items() if policy != ours]
    return lines


def _compare(ours: Row, other: Row) -> str:
    better, same, worse = [], [], []
    for metric in _METRICS:
        gain = _gain(metric, ours, other)
        if gain is None:
            continue
        if abs(gain - 1) <= NOISE:
            same.append(metric.name)
        elif gain > 1:
            better.append(f"{metric.name} {_times(gain)}")
        else:
            worse.append(f"{metric.name} {_times(1 / gain)}")
    lines = [
        f"{ours['policy']} against {other['policy']} on {ours['workload']}",
        f"better: {', '.join(better) or 'nothing'}",
        f"the same (within {NOISE:.0%}): {', '.join(same) or 'nothing'}",
        f"NOT better: {', '.join(worse) or 'nothing'}",
    ]
    if ours["completed"] != other["completed"]:
        lines.append("they completed different numbers of pipelines, so their times are of different sets")
    return "\n  ".join(lines)


def _gain(metric: _Metric, ours: Row, other: Row) -> float | None:
    """How many times better ours is; None where either is unknown or both are nothing."""
    mine, theirs = metric.value(ours), metric.value(other)
    if mine is None or theirs is None:
        return None
    if mine == theirs:
        return 1.0
    good, bad = (mine, theirs) if metric.more_is_better else (theirs, mine)
    return good / bad if bad else float("inf")


def _times(factor: float) -> str:
    return "(none against some)" if factor == float("inf") else f"{factor:.2f}x"

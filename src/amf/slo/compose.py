"""What `amf slo` says of a graph, as plain data: the end-to-end distribution three ways, the hops worth shortening, the
budget of each hop."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from amf.core.graph import CallGraph
from amf.core.path import FINE_POINTS, HopTime, PathTimes, Samples, path_times
from amf.slo.observed import Observed

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
SHORTER = 0.9

Answer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Known:
    """What the answers are made from. `measured`: composed under the measured `correlation`."""

    graph: CallGraph
    times: Mapping[str, HopTime]
    correlation: float
    measured: PathTimes


def compose(observed: Observed, slo_s: float | None, quantile: float) -> Answer:
    """`slo_s` None: the p95 under the measured correlation. `quantile`: of the remaining path, that a budget leaves room
    for."""
    graph, times, correlation = observed.graph, observed.times(), observed.correlation().value
    known = _Known(graph, times, correlation, path_times(graph, times, correlation, FINE_POINTS))
    total = known.measured.total
    slo_s = total.quantile(QUANTILES["p95"]) if slo_s is None else slo_s
    return {
        "graph": graph.name,
        "source": observed.source,
        "pipelines": len(observed.pipelines),
        "correlation": correlation,
        "end_to_end_s": {**_composed(known), "pipelines": _row(observed.totals())},
        "shorten": _shorten(known),
        "slo_s": slo_s,
        "met": sum(value <= slo_s for value in total.values) / len(total.values),
        "quantile": quantile,
        "budgets": _budgets(known, slo_s, quantile),
        "notes": list(observed.notes),
    }


def _composed(known: _Known) -> dict[str, dict[str, float]]:
    graph, times = known.graph, known.times
    return {
        "independent": _row(path_times(graph, times, 0.0, FINE_POINTS).total),
        "measured": _row(known.measured.total),
        "comonotone": _row(path_times(graph, times, 1.0, FINE_POINTS).total),
        "summed": {name: _summed(known, q) for name, q in QUANTILES.items()},
    }


def _summed(known: _Known, q: float) -> float:
    """Along the longest chain, each hop once: what static budgets are made of."""
    return known.graph.critical_path(lambda hop: known.times[hop].quantile(q))[1]


def _row(samples: Samples) -> dict[str, float]:
    return {name: samples.quantile(q) for name, q in QUANTILES.items()}


def _shorten(known: _Known) -> list[Answer]:
    """Each hop 10 % shorter by itself, best first."""
    now_s = known.measured.total.quantile(QUANTILES["p99"])
    rows: list[Answer] = []
    for hop in known.graph.order:
        shorter = {**known.times, hop: HopTime(_scaled(known.times[hop].quantile, SHORTER))}
        total = path_times(known.graph, shorter, known.correlation, FINE_POINTS).total
        p99_s = total.quantile(QUANTILES["p99"])
        rows.append({"hop": hop, "pool": known.graph.by_name[hop].pool, "p99_s": p99_s, "gain_s": now_s - p99_s})
    return sorted(rows, key=lambda row: -row["gain_s"])


def _budgets(known: _Known, slo_s: float, quantile: float) -> list[Answer]:
    return [
        {
            "hop": hop,
            "pool": known.graph.by_name[hop].pool,
            "p50_s": known.times[hop].quantile(QUANTILES["p50"]),
            "p99_s": known.times[hop].quantile(QUANTILES["p99"]),
            "after_mean_s": known.measured.after(hop).mean,
            "after_s": known.measured.after(hop).quantile(quantile),
            "latest_start_s": slo_s - known.measured.since(hop).quantile(quantile),
            "latest_end_s": slo_s - known.measured.after(hop).quantile(quantile),
        }
        for hop in known.graph.order
    ]


def _scaled(quantile: Callable[[float], float], factor: float) -> Callable[[float], float]:
    return lambda q: factor * quantile(q)

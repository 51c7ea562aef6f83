"""What `amf slo` says of a graph, as plain data: the end-to-end distribution three ways, the hops worth shortening, the
budget of each hop."""

from collections.abc import Callable, Mapping
from typing import Any

from amf.core.path import FINE_POINTS, HopTime, PathTimes, Samples, path_times
from amf.slo.observed import Observed

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
SHORTER = 0.9

Answer = dict[str, Any]


def compose(observed: Observed, slo_s: float | None, quantile: float) -> Answer:
    """`slo_s` None: the p95 under the measured correlation. `quantile`: of the remaining path, that a budget leaves room
    for."""
    graph, times = observed.graph, observed.times()
    seen = observed.correlation()
    measured = path_times(graph, times, seen.value, FINE_POINTS)
    slo_s = measured.total.quantile(QUANTILES["p95"]) if slo_s is None else slo_s
    met = sum(value <= slo_s for value in measured.total.values) / FINE_POINTS
    rows = {
        "independent": _row(path_times(graph, times, 0.0, FINE_POINTS).total),
        f"correlation {seen.value:.2f}, as measured": _row(measured.total),
        "comonotone": _row(path_times(graph, times, 1.0, FINE_POINTS).total),
        "hop quantiles summed": {
            name: graph.critical_path(lambda hop, q=q: times[hop].quantile(q))[1]  # type: ignore[misc]
            for name, q in QUANTILES.items()
        },
        "the pipelines themselves": _row(observed.totals()),
    }
    return {
        "graph": graph.name,
        "source": observed.source,
        "pipelines": len(observed.pipelines),
        "correlation": seen.value,
        "end_to_end_s": rows,
        "shorten": _shorten(observed, times, measured),
        "slo_s": slo_s,
        "met_alone": met,
        "quantile": quantile,
        "budgets": _budgets(observed, measured, slo_s, quantile),
        "notes": list(observed.notes),
    }


def _row(samples: Samples) -> dict[str, float]:
    return {name: samples.quantile(q) for name, q in QUANTILES.items()}


def _shorten(observed: Observed, times: Mapping[str, HopTime], measured: PathTimes) -> list[Answer]:
    """Each hop 10 % shorter by itself, best first."""
    graph, correlation = observed.graph, observed.correlation().value
    now_s = measured.total.quantile(QUANTILES["p99"])
    rows: list[Answer] = []
    for hop in graph.order:
        shorter = {**times, hop: HopTime(_scaled(times[hop].quantile, SHORTER))}
        p99_s = path_times(graph, shorter, correlation, FINE_POINTS).total.quantile(QUANTILES["p99"])
        rows.append({"hop": hop, "pool": graph.by_name[hop].pool, "p99_s": p99_s, "gain_s": now_s - p99_s})
    return sorted(rows, key=lambda row: -row["gain_s"])


def _budgets(observed: Observed, measured: PathTimes, slo_s: float, quantile: float) -> list[Answer]:
    times = observed.times()
    return [
        {
            "hop": hop,
            "pool": observed.graph.by_name[hop].pool,
            "p50_s": times[hop].quantile(QUANTILES["p50"]),
            "p99_s": times[hop].quantile(QUANTILES["p99"]),
            "after_mean_s": measured.after(hop).mean,
            "after_s": measured.after(hop).quantile(quantile),
            "latest_start_s": slo_s - measured.since(hop).quantile(quantile),
            "latest_end_s": slo_s - measured.after(hop).quantile(quantile),
        }
        for hop in observed.graph.order
    ]


def _scaled(quantile: Callable[[float], float], factor: float) -> Callable[[float], float]:
    return lambda q: factor * quantile(q)

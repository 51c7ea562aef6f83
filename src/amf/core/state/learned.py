"""What is known of a declared call graph, as plain data for reports: per hop the quantiles, how much evidence stands behind
each and where it comes from; per edge the odds; what a whole pipeline asks of the fleet. Nothing is composed for it and
nothing counts as used, so that to look changes no decision."""

from typing import Any

from amf.core.graph import CallGraph
from amf.core.state.paths import Remaining
from amf.core.state.prediction import QUANTITIES, Prediction
from amf.core.state.profiles import Profiles

_STATED = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def of_graph(graph: CallGraph, profiles: Profiles) -> dict[str, object]:
    """JSON-able. Names ending in _s are seconds, in _tokens tokens; null: nothing is known, or was not needed yet."""
    composed = profiles.paths.composed(graph)
    return {
        "hops": [_of_hop(graph, hop, profiles, composed) for hop in graph.order],
        "edges": _of_edges(graph, profiles),
        "correlation": profiles.paths.correlation(graph.name),
        "factor": profiles.paths.factor(graph.name),
        "pipelines": profiles.demand.report(graph.name),
    }


def _of_hop(graph: CallGraph, hop: str, profiles: Profiles, composed: Remaining | None) -> dict[str, object]:
    declared = graph.by_name[hop]
    place = graph.name, hop, declared.pool
    return {
        "hop": hop,
        "pool": declared.pool,
        **{each: _predicted(profiles.predict(each, place, _hint(each, declared.expected_s))) for each in QUANTITIES},
        "reached": _odds(profiles.reach_odds(graph.name, hop)),
        "calls": _odds(profiles.hop_calls(graph.name, hop)),
        "room_after_s": composed and composed.after_s[hop] * profiles.paths.factor(graph.name),
    }


def _of_edges(graph: CallGraph, profiles: Profiles) -> list[dict[str, object]]:
    seen = profiles.seen(graph)
    return [
        {
            "from": edge.source,
            "to": edge.target,
            "declared": edge.probability,
            "used": used.probability,
            "taken": _odds(profiles.branch_odds(graph.name, edge.source, edge.target)),
        }
        for edge, used in zip(graph.edges, seen.edges, strict=True)
    ]


def _hint(quantity: str, expected_s: float | None) -> float:
    return expected_s or 0.0 if quantity == "service_s" else 0.0


def _predicted(found: Prediction) -> dict[str, Any]:
    quantiles = {name: found.quantile(q) if found.sketch else None for name, q in _STATED.items()}
    return {"mean": found.value, **quantiles, "evidence": found.evidence, "source": found.source.value}


def _odds(found: Prediction) -> dict[str, Any] | None:
    """None while nothing was seen."""
    return {"value": found.value, "evidence": found.evidence} if found.evidence else None

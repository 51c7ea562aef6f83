"""Named choices. A bundle is one row of every comparison table; the fabric's own is a row like the others."""

from dataclasses import replace

from amf.core.policy import admission, baselines, budget, ordering, residency, routing
from amf.core.policy.interface import Policies, Route

_PLAIN = Policies(
    name="",
    admit=admission.by_bounds,
    budget=budget.no_budget,
    order=ordering.fcfs,
    route=baselines.least_loaded,
    retain=residency.let_go,
)


def _plain(name: str, route: Route) -> Policies:
    return replace(_PLAIN, name=name, route=route)


BUNDLES: dict[str, Policies] = {
    policies.name: policies
    for policies in (
        _plain("round-robin", baselines.round_robin),
        _plain("least-loaded", baselines.least_loaded),
        _plain("session-affinity", baselines.session_affinity),
        _plain("prefix-affinity", baselines.prefix_affinity),
        _plain("kv-cost", baselines.kv_cost),
        replace(_PLAIN, name="essay", route=baselines.essay, budget=budget.static_split, order=ordering.least_slack),
        Policies(
            name="fabric",
            admit=admission.by_bounds,
            budget=budget.by_critical_path,
            order=ordering.least_slack,
            route=routing.hold_back,
            retain=residency.by_break_even,
        ),
    )
}


def policies_named(name: str) -> Policies:
    """The bundle of this name. Raises ValueError that lists the known ones."""
    if name not in BUNDLES:
        raise ValueError(f"unknown policy {name!r}; known: {', '.join(BUNDLES)}")
    return BUNDLES[name]

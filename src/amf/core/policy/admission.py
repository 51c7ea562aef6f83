"""May this pipeline start now? Asked once, at its first hop; an admitted pipeline is never refused later."""

from amf.core.decisions import Because
from amf.core.policy.interface import FleetView, Verdict
from amf.core.types import Call

_ADMITTED = Verdict(Because(reason="within bounds"))


def by_bounds(call: Call, view: FleetView) -> Verdict:
    """Refuse what cannot end well: a deadline that has passed, or more live pipelines than the configured bound.

    The retry hint is the mean time until one of the live pipelines ends: their mean age so far, shared among them.
    """
    config = view.config
    if call.deadline_s is not None and call.deadline_s <= view.now_s:
        late_s = view.now_s - call.deadline_s
        return Verdict(
            Because(reason=f"the deadline passed {late_s:.3f} s before the pipeline began"), "deadline_exceeded"
        )
    live = len(view.pipelines)
    if live >= config.max_live_pipelines:
        ages_s = sum(view.now_s - pipeline.opened_s for pipeline in view.pipelines.live())
        retry_s = max(ages_s / live / live, 0.1)
        reason = f"{live} pipelines are live, the bound is max_live_pipelines={config.max_live_pipelines}"
        return Verdict(Because(reason=reason), "pipeline_admission_refused", retry_s)
    return _ADMITTED


def by_demand(call: Call, view: FleetView) -> Verdict:
    """And refuse a pipeline whose deadline it, or those already admitted, could then not meet.

    The demand bound of earliest deadline first, pool by pool: sorted by when it must be done, the expected work of all live
    pipelines that are still in time may nowhere exceed `demand_share` of what the pool's workers can do until then. Expected
    work and not a quantile of it: over many pipelines sums concentrate. Only where the new pipeline comes first or together
    with others can it be the cause.
    """
    verdict = by_bounds(call, view)
    own = view.demand.of(call.graph)
    if verdict.code or call.deadline_s is None or own is None:
        return verdict
    budget_s = call.deadline_s - view.now_s
    pressure_s = own_pressure_s(call.graph, view)
    wait_s = own.delay.value * pressure_s
    odds = own.odds_within(budget_s - wait_s)
    if odds < view.config.feasible_odds:
        reason = f"{budget_s:.1f} s are too few: the path takes {own.path_s.value:.1f} s alone, {wait_s:.1f} s more now, odds {odds:.0%}"
        return Verdict(Because(reason=reason), "deadline_infeasible")
    useful_s = call.deadline_s - own.path_s.value
    for pool, mean in own.work_s.items():
        excess_s, reason = _excess_s(pool, useful_s, mean.value, view)
        if excess_s > 0.0:
            return Verdict(Because(reason=reason), "pipeline_admission_refused", max(excess_s, _LEAST_RETRY_S))
    return verdict


def own_pressure_s(graph_name: str, view: FleetView) -> float:
    """Seconds of expected work a worker that live pipelines still ask of the pools of this graph, where it is most."""
    own = view.demand.of(graph_name)
    if own is None:
        return 0.0
    asked = dict.fromkeys(own.work_s, 0.0)
    for pipeline in view.pipelines.live():
        demand = view.demand.of(pipeline.graph_name)
        if demand is not None:
            for pool in asked:
                asked[pool] += demand.needed_s(pipeline, pool)
    return max((seconds / max(view.workers.get(pool, 0), 1) for pool, seconds in asked.items()), default=0.0)


def _excess_s(pool: str, useful_s: float, work_s: float, view: FleetView) -> tuple[float, str]:
    """How much too soon the pool's work would be due, with the new pipeline; 0 if it is not."""
    workers = view.workers.get(pool, 0)
    demands = [(useful_s, work_s)]
    for pipeline in view.pipelines.live():
        if pipeline.deadline_s is None or pipeline.deadline_s < view.now_s:
            continue
        demand = view.demand.of(pipeline.graph_name)
        if demand is not None and (needed_s := demand.needed_s(pipeline, pool)) > 0.0:
            demands.append((demand.latest_useful_s(pipeline), needed_s))
    demands.sort()
    total_s = 0.0
    for due_s, needed_s in demands:
        total_s += needed_s
        time_s = max(due_s - view.now_s, _SOON_S)
        room_s = view.config.demand_share * workers * time_s
        if due_s >= useful_s and total_s > room_s:
            reason = (
                f"{pool}: {total_s:.1f} s of work would be due in {time_s:.1f} s, which has room for {room_s:.1f} s"
            )
            return (total_s - room_s) / (view.config.demand_share * max(workers, 1)), reason
    return 0.0, ""


_SOON_S = 0.01
_LEAST_RETRY_S = 10.0  # shorter hints made clients come back too early (docs/time.md)

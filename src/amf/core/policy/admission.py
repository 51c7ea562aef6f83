"""May this pipeline start now? Asked once, at its first hop; an admitted pipeline is never refused later."""

from amf.core.decisions import Because
from amf.core.policy.interface import FleetView, Verdict
from amf.core.types import Call

_ADMITTED = Verdict(Because(reason="within bounds"))
_SOON_S = 0.01
_LEAST_RETRY_S = 10.0  # shorter hints bring clients back too early (docs/time.md)


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
    live = len(view.pipelines) - len(view.pipelines.silent)  # those make room
    if live >= config.max_live_pipelines:
        ages_s = sum(view.now_s - pipeline.opened_s for pipeline in view.pipelines.live())
        retry_s = max(ages_s / live / live, 0.1)
        reason = f"{live} pipelines are live, the bound is max_live_pipelines={config.max_live_pipelines}"
        return Verdict(Because(reason=reason), "pipeline_admission_refused", retry_s)
    return _ADMITTED


def by_demand(call: Call, view: FleetView) -> Verdict:
    """And refuse a pipeline whose deadline it, or others that were admitted before, could then not meet.

    The demand bound of earliest deadline first, pool by pool: sorted by when it must be done, the expected work of all live
    pipelines that are still in time may nowhere exceed a share of what the pool's workers can do until then. Expected work
    and not a quantile of it: over many pipelines sums concentrate. Only where the new pipeline's work, or work due after
    it, is short of time can it be the cause. The share is `demand_share`, times the margin that earlier promises have earned
    (`state/demand.py`). Nothing is refused before `demand_evidence` of the graph's pipelines with a deadline have come to
    their end."""
    verdict, own = by_bounds(call, view), view.profiles.demand.of(call.graph)
    if verdict.code or call.deadline_s is None or own is None:
        return verdict
    budget_s = call.deadline_s - view.now_s
    path = own.guess(call.prompt_tokens, budget_s)
    odds = path.odds_below(budget_s)
    if odds < view.config.feasible_odds:
        reason = f"{budget_s:.1f} s are too few: alone it takes about {path.median:.1f} s, odds {odds:.0%}; give it more time"
        return Verdict(Because(reason=reason), "deadline_infeasible")
    due_s, size = call.deadline_s - view.config.demand_path_share * path.mean, own.size(path.mean)
    share = view.config.demand_share * own.margin
    for pool, mean in own.work_s.items():
        lacking_s, reason = _lacking_s(pool, (due_s, mean.value * size), view, share)
        if lacking_s > 0.0:
            return Verdict(Because(reason=reason), "pipeline_admission_refused", max(lacking_s, _LEAST_RETRY_S))
    return verdict


def _lacking_s(pool: str, new: tuple[float, float], view: FleetView, share: float) -> tuple[float, str]:
    """By how many seconds the pool's work would be due too soon if `new` (when due, worker-seconds) came to it, and where; 0 if
    there is time enough, or nobody else has work there: a margin that fell could not rise again if none were admitted."""
    pledged, rate = view.pledges.of_pool(pool), share * max(view.workers.get(pool, 0), 1)
    total_s = 0.0
    for due_s, needed_s in sorted([new, *pledged]) if pledged else ():
        total_s += needed_s
        time_s = max(due_s - view.now_s, _SOON_S)
        if due_s >= new[0] and total_s > rate * time_s:
            work = f"{total_s:.1f} s of work would be due in {time_s:.1f} s, where {rate * time_s:.1f} s may be done"
            reason = f"{pool}: {work}; come back later, give it more time, or add workers"
            return total_s / rate - time_s, reason
    return 0.0, ""

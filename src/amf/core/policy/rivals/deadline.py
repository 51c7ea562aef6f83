"""Orders that know deadlines or the graph, for a central queue.

`least-slack` and `static-split` (GrandSLAm, EuroSys 2019) need no order of their own: `ordering.least_slack` on the budget of
the critical path, or of the fixed shares. Of GrandSLAm its choice of batch sizes is not reproduced: engines batch
continuously.
"""

from math import inf

from amf.core.policy.budget import hop_seconds, seconds_after
from amf.core.policy.interface import View
from amf.core.policy.ordering import LAST_S, least_slack
from amf.core.state.pipelines import CallState, Pipeline


def edf(state: CallState, due_s: float | None, view: View) -> float:
    """Earliest deadline first, on the deadline of the whole pipeline (with `budget.no_budget`). A pipeline without one is due
    `lapse_s` after it began."""
    if due_s is not None:
        return due_s
    pipeline = view.pipelines.get(state.call.run_id)
    return (pipeline.opened_s if pipeline else state.arrived_s) + view.config.lapse_s


def negative_slack_last(state: CallState, due_s: float | None, view: View) -> float:
    """Least slack first, but what cannot be in time any more goes behind all that can: the urgency of HexGen-Flow
    (arXiv:2505.05286) with late calls last. Not reproduced: its dispatcher over unequal instances, whose weight it tunes
    by simulation; the bundle binds late to the least loaded worker in its place."""
    latest_start_s = least_slack(state, due_s, view)
    return latest_start_s + LAST_S if due_s is not None and latest_start_s < view.now_s else latest_start_s


def upward_rank(state: CallState, due_s: float | None, view: View) -> float:
    """Highest upward rank first: the hop's own seconds and the critical path after it (HEFT, Topcuoglu et al., IEEE TPDS
    2002). The rank is meant for the makespan of one graph; across pipelines it serves those that have most left. A call
    outside a declared graph ranks by its own seconds. Not reproduced: HEFT's choice of processor by earliest finish."""
    call = state.call
    pipeline = view.pipelines.get(call.run_id)
    graph = pipeline.graph if pipeline else None
    if graph is None or call.hop not in graph.by_name:
        return -view.profiles.expected_service_s(call)
    return -(hop_seconds(graph, view)(call.hop) + seconds_after(graph, call, view))


def at_deadline(pipeline: Pipeline) -> float:
    """Given up when its deadline has passed, with all its calls: what is late is worth nothing, and its capacity goes to those
    that can still be in time. Part of the strongest deadline-aware rivals (`edf-cancel`)."""
    return pipeline.deadline_s if pipeline.deadline_s is not None else inf

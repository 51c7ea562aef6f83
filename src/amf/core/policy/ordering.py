"""Which waiting call goes first? The answer is a time on the fabric's clock, lowest first, comparable between calls
whenever they arrived; engines with a priority field get the same number."""

from math import ceil, log2

from amf.core.policy.interface import View
from amf.core.state.pipelines import CallState
from amf.core.types import SloClass

LAST_S = 1e9  # what is added to the key of a call that goes behind all others

_LEAST_BUDGET_S = 1.0
_PATIENCE = {SloClass.INTERACTIVE: 1.0, SloClass.THROUGHPUT: 1.0, SloClass.BACKGROUND: 4.0}


def fcfs(state: CallState, due_s: float | None, view: View) -> float:
    """First come, first served."""
    return state.arrived_s


def least_slack(state: CallState, due_s: float | None, view: View) -> float:
    """Latest start that still meets the hop's deadline: due minus expected service.

    Calls without a deadline come after those with one, but `lapse_s` later (four times that for background work) as if
    they had one, so that nothing waits for ever. Among themselves, a call is due when its pipeline has taken
    `stretch_target` times what it would have taken without queues: who has suffered most for its length goes first."""
    call, config = state.call, view.config
    if due_s is None:
        due_s = state.arrived_s + config.lapse_s
        if (pipeline := view.pipelines.get(call.run_id)) is not None:
            unqueued_s = max(0.0, state.arrived_s - pipeline.opened_s - pipeline.account.queue_s)
            due_s = min(due_s, pipeline.opened_s + config.stretch_target * unqueued_s)
        due_s += config.lapse_s * _PATIENCE[call.slo_class]
    return due_s - view.profiles.expected_service_s(call)


def renewed_slack(state: CallState, due_s: float | None, view: View) -> float:
    """Least slack first, but a deadline that can no longer be met is not the most urgent of all.

    Whoever is late is given the time of his pipeline again, and twice as much each time he misses that: with a budget of
    B seconds his call is due B, 3 B, 7 B, ... later than it should have been, the first of these that can still be met.
    So what is late does not push aside what can be in time, comes before what has more time than that, and after some
    doublings at the latest nothing that arrives goes before it."""
    latest_start_s = least_slack(state, due_s, view)
    pipeline = view.pipelines.get(state.call.run_id)
    if due_s is None or latest_start_s >= view.now_s or pipeline is None or pipeline.deadline_s is None:
        return latest_start_s
    budget_s = max(pipeline.deadline_s - pipeline.opened_s, _LEAST_BUDGET_S)
    doublings = ceil(log2((view.now_s - latest_start_s) / budget_s + 1.0))
    return latest_start_s + budget_s * (2.0**doublings - 1.0)

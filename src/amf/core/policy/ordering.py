"""Which waiting call goes first? The answer is a time on the fabric's clock, lowest first, comparable between calls
whenever they arrived; engines with a priority field get the same number."""

from amf.core.policy.interface import View
from amf.core.state.pipelines import CallState
from amf.core.types import SloClass

LAST_S = 1e9  # what is added to the key of a call that goes behind all others

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

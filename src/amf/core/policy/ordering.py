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
    """Latest start that still meets the hop's deadline: due minus expected service. A call without a deadline is due
    `lapse_s` after it arrived (four times that for background work), so nothing waits for ever behind deadlines; and sooner
    by what its pipeline has waited in queues before, so that waits even out between pipelines."""
    if due_s is None:
        pipeline = view.pipelines.get(state.call.run_id)
        waited_s = pipeline.account.queue_s if pipeline else 0.0
        due_s = state.arrived_s + view.config.lapse_s * _PATIENCE[state.call.slo_class] - waited_s
    call = state.call
    return due_s - view.profiles.expected_service_s(call)

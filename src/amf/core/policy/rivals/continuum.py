"""Program first come, first served on the program's own worker: what of Continuum (CacheTTL, arXiv:2511.02230) can be done
above an engine.

Not reproduced: pinning the KV of a finished turn for a time to live drawn from the tool's history, which takes the engine's
memory manager, and with it the priority of preempted and pinned requests. So a context lives here as long as the engine's
own eviction lets it.
"""

from amf.core.policy.interface import View
from amf.core.state.pipelines import CallState


def program_fcfs(state: CallState, due_s: float | None, view: View) -> float:
    """When the program began: its later calls go before all programs that came after it."""
    pipeline = view.pipelines.get(state.call.run_id)
    return pipeline.opened_s if pipeline else state.arrived_s

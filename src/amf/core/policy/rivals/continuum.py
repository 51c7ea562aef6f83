"""Program first come, first served on the program's own worker: what of Continuum (CacheTTL, arXiv:2511.02230) can be done
above an engine.

Its retention rule pins the KV of a finished turn for the time to live

    argmax over t of  P(tool done within t) x (mean queueing delay x memoryfulness + reload seconds)  -  t

drawn from the tool's history. Not reproduced, since it takes the engine's memory manager: the pin itself, the priority of
preempted and pinned requests before the program's order, unpinning the latest program when pins block the head of the
queue, and the KV offload. So a context lives here as long as the engine's own eviction lets it. A gateway could use the
number only to hold other calls back, as the fabric does with its break-even time: that would be our rule under their name.
"""

from amf.core.policy.interface import View
from amf.core.state.pipelines import CallState


def program_fcfs(state: CallState, due_s: float | None, view: View) -> float:
    """When the program began: its later calls go before all programs that came after it."""
    pipeline = view.pipelines.get(state.call.run_id)
    return pipeline.opened_s if pipeline else state.arrived_s

"""The essay's own routing rule, as it prints it. It binds at once."""

from amf.core.decisions import Because
from amf.core.policy.interface import Placement, PoolView
from amf.core.policy.rivals.balance import least_loaded
from amf.core.policy.routing import usable
from amf.core.state.pipelines import CallState


def essay(state: CallState, view: PoolView) -> Placement:
    """The essay's KV_REUSE_THRESHOLD rule: the least loaded warm worker while its queue is below the threshold, else the
    least loaded of all. Any warm prefix counts as warm."""
    hits = view.warmth.hits(state.call.prefix, view.now_s)
    warm = [w for w in usable(state, view) if w.name in hits and hits[w.name].tokens]
    if warm:
        worker = min(warm, key=lambda w: (w.running, w.name))
        if worker.running < view.config.kv_reuse_threshold_calls:
            return Placement(worker.name, Because(reason="warm, queue below threshold"), hits[worker.name].tokens)
    return least_loaded(state, view)

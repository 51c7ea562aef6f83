"""First-hop admission on the footprint of whole sessions: a new pipeline starts only while

    the sum over live sessions of max(footprint, context)  +  the same for this one     fits the pool's KV memory, HBM and DRAM

and every later call goes at once to its session's worker. First come, first served; a new session goes to the worker with
most room. The footprint is `footprint_tokens`, or, if that is 0, the mean context of the pool's calls so far.

No published system is this alone, but it is the simplest rule that never thrashes, and in our own measurements the strongest
rival on mean completion time in deep overload. It pays with the wait of those it does not let in. What it cannot see above
an engine: that a session is over, when nobody says so. A session then counts until it is given up, as the fabric's residents
are: when it has been idle for eight mean gaps.
"""

from amf.core.decisions import Because
from amf.core.policy.interface import Placement, PoolView
from amf.core.policy.routing import home_of, usable
from amf.core.state.pipelines import CallState


def admit_by_footprint(state: CallState, view: PoolView) -> Placement:
    """A pipeline's first call when its session fits beside those that live; later calls at once."""
    home = home_of(state, view)
    if home is not None:
        return Placement(home.name, Because(reason="its session's worker"))
    least_tokens = view.config.footprint_tokens or view.profiles.pool_context_tokens(view.pool)
    held = {worker.name: 0.0 for worker in view.workers}
    for worker in view.workers:
        for lane in view.lanes.home(worker.name).lanes.values():
            if lane.in_flight or lane.waiting or lane.resident_until_s > view.now_s:
                held[worker.name] += max(least_tokens, lane.context_tokens)
    memory_tokens = sum(worker.tiers_tokens for worker in view.workers)
    held_tokens = sum(held.values())
    needed_tokens = max(least_tokens, state.call.prompt_tokens)
    starts = state.number == 0 and state.attempt == 0 and memory_tokens > 0
    if starts and held_tokens > 0 and held_tokens + needed_tokens > memory_tokens:
        reason = f"not admitted: {held_tokens:.0f} of {memory_tokens} tokens belong to sessions, it counts {needed_tokens:.0f}"
        return Placement(None, Because(reason=reason))
    worker = min(usable(state, view), key=lambda w: (held[w.name] - w.tiers_tokens, w.running, w.name))
    return Placement(worker.name, Because(reason=f"most room: sessions hold {held[worker.name]:.0f} tokens"))

"""Rules that look at load or at the session alone. They bind at once: whatever waits, waits in the engine."""

from hashlib import blake2b
from math import ceil

from amf.core.decisions import Because
from amf.core.policy.interface import Placement, PoolView
from amf.core.policy.routing import usable
from amf.core.state.pipelines import CallState


def round_robin(state: CallState, view: PoolView) -> Placement:
    workers = usable(state, view)
    worker = workers[view.dispatched % len(workers)]
    return Placement(worker.name, Because(reason=f"round-robin turn {view.dispatched}"))


def least_loaded(state: CallState, view: PoolView) -> Placement:
    """Fewest calls in flight, then by name."""
    worker = min(usable(state, view), key=lambda w: (w.running, w.name))
    return Placement(worker.name, Because(reason=f"fewest calls in flight ({worker.running})"))


def session_affinity(state: CallState, view: PoolView) -> Placement:
    """Consistent (rendezvous) hashing of the session with bounded load: the first worker in the session's own ranking whose
    load is below `affinity_load_factor` x the mean (Mirrokni et al., consistent hashing with bounded loads)."""
    workers = usable(state, view)
    bound = ceil(view.config.affinity_load_factor * (sum(w.running for w in workers) + 1) / len(workers))
    ranked = sorted(workers, key=lambda w: (_rank(state.call.run_id, w.name), w.name))
    worker = next(w for w in ranked if w.running < bound)
    turned_away = ranked.index(worker)
    return Placement(
        worker.name, Because(reason=f"session hash, {turned_away} fuller workers passed over (bound {bound})")
    )


def _rank(session: str, worker: str) -> bytes:
    return blake2b(f"{session}\0{worker}".encode(), digest_size=8).digest()

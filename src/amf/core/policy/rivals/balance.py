"""Rules that look at load or at the session alone. They bind at once: whatever waits, waits in the engine."""

from functools import lru_cache
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
    bound = ceil(view.config.affinity_load_factor * (sum([len(w.flights) for w in workers]) + 1) / len(workers))
    ranking = _ranking(state.call.run_id, tuple([w.name for w in workers]))
    turned_away, worker = next(
        (turn, workers[index]) for turn, index in enumerate(ranking) if len(workers[index].flights) < bound
    )
    return Placement(
        worker.name, Because(reason=f"session hash, {turned_away} fuller workers passed over (bound {bound})")
    )


@lru_cache(maxsize=4_096)
def _ranking(session: str, workers: tuple[str, ...]) -> tuple[int, ...]:
    """Indices of the workers in the session's own order. Remembered, since a session asks at each of its calls."""
    return tuple(sorted(range(len(workers)), key=lambda index: (_rank(session, workers[index]), workers[index])))


def _rank(session: str, worker: str) -> bytes:
    return blake2b(f"{session}\0{worker}".encode(), digest_size=8).digest()

"""Which held calls need not be priced again? Where memory is short most of them wait for the same thing: room.

A call that is cold on every worker can start only where a cold prefill may, beside what is protected there. So the most room
on any worker, summed up once a look, tells for each of them whether a look could end otherwise than the last. It is asked
about warmth again every `cold_look_s`, and when another call of its pipeline is sent, which computes what both need.

Of the calls that may claim a worker (`reserve_s`) the most urgent is looked at without room.
"""

from dataclasses import dataclass
from math import inf

from amf.core.policy.interface import PoolView
from amf.core.policy.routing import lapsed, reserves, yields
from amf.core.state.pipelines import CallState, CallStatus
from amf.core.state.workers import WorkerState


@dataclass(frozen=True, slots=True)
class Room:
    """The most memory that one cold call could take on any worker, beside contexts that are protected from a call without a
    deadline, from one with a deadline, and from one that has lapsed. `least_kv_tokens`: of the smallest worker."""

    tokens: float = -inf
    urgent_tokens: float = -inf
    lapsed_tokens: float = -inf
    least_kv_tokens: float = inf


def may_start(state: CallState, view: PoolView) -> bool:
    """False where `routing.hold_back` would hold the call again."""
    if view.now_s >= state.cold_until_s or view.tiers_tokens:
        return True
    if reserves(state, view) and view.remembered("first to reserve", lambda: state) is state:
        return True
    room = view.remembered("room", lambda: _room(view))
    tokens = room.tokens if state.due_s is None else room.urgent_tokens
    if lapsed(state, view):
        tokens = max(tokens, room.lapsed_tokens)
    if _has_sibling_in_flight(state, view):
        return True
    lane = view.lanes.get(state.call.run_id, state.call.pool)
    if lane is not None:  # a context is not in the way of its own pipeline
        tokens += lane.claimed_tokens
    return state.footprint_tokens <= tokens or state.call.prompt_tokens >= room.least_kv_tokens


def _has_sibling_in_flight(state: CallState, view: PoolView) -> bool:
    """Whether it might share memory that its pipeline holds already."""
    pipeline = view.pipelines.get(state.call.run_id)
    others = pipeline.live.values() if pipeline else ()
    return any(other.status is CallStatus.RUNNING and other.call.pool == view.pool for other in others)


def _room(view: PoolView) -> Room:
    rooms = [_room_on(worker, view) for worker in view.workers]
    return Room(
        tokens=max(room.tokens for room in rooms),
        urgent_tokens=max(room.urgent_tokens for room in rooms),
        lapsed_tokens=max(room.lapsed_tokens for room in rooms),
        least_kv_tokens=min(room.least_kv_tokens for room in rooms),
    )


def _room_on(worker: WorkerState, view: PoolView) -> Room:
    """As `routing` measures a cold call against a worker."""
    kv_tokens, busy = worker.kv_tokens, bool(worker.flights)
    if kv_tokens <= 0:
        return Room(inf, inf, inf)
    if busy and (
        worker.cold_prefills >= view.config.max_cold_prefills
        or worker.running >= worker.spec.max_running
        or worker.name in view.reserved
    ):
        return Room(least_kv_tokens=kv_tokens)
    home, free_tokens = view.lanes.home(worker.name), worker.free_tokens()
    claimed_tokens = home.protected_tokens + home.waiting_tokens
    return Room(
        tokens=free_tokens - claimed_tokens if busy or claimed_tokens else inf,
        urgent_tokens=free_tokens - home.urgent_tokens if busy or home.urgent_tokens else inf,
        lapsed_tokens=(free_tokens if busy else inf) if yields(worker, view) else -inf,
        least_kv_tokens=kv_tokens,
    )

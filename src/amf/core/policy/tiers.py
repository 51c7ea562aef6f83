"""Routing in a pool whose workers keep a DRAM tier below HBM. Without one, `routing.hold_back` decides as ever.

A context that HBM has forgotten comes back from DRAM in a third of a second; what the tier has forgotten, too, is computed
again in half a minute. So the hold-back rule moves to the boundary that costs, the last one, and none is at HBM's:

- A pipeline stays on its worker, since a tier belongs to one worker: to move is to compute everything again.
- A call waits here until its worker's HBM has room for it, so that urgency and not arrival decides who has it next.
- While the contexts of all live pipelines fit in the tiers (`tier_margin` of them: a tier also keeps what is dead and what
  is half forgotten), that is all. There is nothing to protect.
- When they do not, warm calls go before cold ones (*warm*: at most `cold_tokens` are in no tier), and a cold one obeys the
  rule of hold-back with both tiers as the memory: one cold prefill at a time, and room in `tier_margin` of HBM and DRAM
  beside the contexts that are protected there. The break-even time that protects them (`residency.by_break_even`) counts
  both tiers likewise.
- A call that has waited `tier_lapse_s` yields to nobody, and its worker takes nothing new until it fits there.
"""

from amf.core.decisions import Because
from amf.core.policy.interface import Placement, PoolView
from amf.core.policy.routing import HELD_AS_BEFORE, held, hold_back, home_of, usable
from amf.core.state.pipelines import CallState
from amf.core.state.workers import WorkerState


def hold_back_at_the_last_tier(state: CallState, view: PoolView) -> Placement:
    """The pipeline's own worker, when its memory, and at need its tiers, have room; a new one's where most room is."""
    if not view.tiers_tokens:
        return hold_back(state, view)
    home = home_of(state, view)
    candidates = [home] if home is not None else _roomiest(state, view)
    obstacles: list[str] = []
    for worker in candidates:
        obstacle = _obstacle(state, worker, view)
        if not obstacle:
            return Placement(
                worker.name, Because(reason=f"memory for it on {worker.name}, where its context is or will be")
            )
        obstacles.append(obstacle)
    name = candidates[0].name
    claim = name if _lapsed(state, view) and name not in view.reserved else ""
    because = HELD_AS_BEFORE if state.held else Because(reason=f"held for worker {name}: {obstacles[0]}")
    return held(state, because, view, claim)


def _roomiest(state: CallState, view: PoolView) -> list[WorkerState]:
    """For a pipeline without a worker: those first whose pipelines hold the smallest share of their tiers."""

    def share(worker: WorkerState) -> float:
        tokens = view.remembered((worker.name, worker.dispatched), lambda: _held_tokens(worker, view))
        return tokens / (worker.tiers_tokens or 1)

    return sorted(usable(state, view), key=lambda worker: (share(worker), worker.running, worker.name))


def _held_tokens(worker: WorkerState, view: PoolView) -> float:
    """The contexts of a worker's live pipelines; those below the pool's mean will grow to it."""
    mean_tokens = view.profiles.pool_context_tokens(view.pool)
    lanes = view.lanes.home(worker.name).lanes.values()
    return sum(max(mean_tokens, lane.context_tokens) for lane in lanes if lane.waiting or lane.counted_resident)


def _obstacle(state: CallState, worker: WorkerState, view: PoolView) -> str:
    """Why the call cannot start on this worker now; empty if it can, or if it never will and the engine must say so. What is
    warm is asked for last: it takes longest to say."""
    call, config = state.call, view.config
    if 0 < worker.kv_tokens <= call.prompt_tokens:
        return ""
    if worker.name in view.reserved:
        return "its memory is kept free for a call that has waited too long"
    if worker.running >= worker.spec.max_running:
        return f"all {worker.spec.max_running} sequences are taken"
    if worker.flights and worker.free_tokens() < (needed_tokens := worker.needed_tokens(call, state.footprint_tokens)):
        return f"memory: {needed_tokens} tokens needed, {max(worker.free_tokens(), 0)} not reserved"
    if view.live_tokens <= config.tier_margin * view.tiers_tokens:
        return ""
    obstacle = _obstacle_to_cold(state, worker, view)
    if not obstacle or _lapsed(state, view) or call.prompt_tokens <= config.cold_tokens:
        return ""
    hit_tokens = view.warmth.hit(worker.name, call.prefix, view.now_s).tokens
    return obstacle if call.prompt_tokens - hit_tokens > config.cold_tokens else ""


def _obstacle_to_cold(state: CallState, worker: WorkerState, view: PoolView) -> str:
    if worker.cold_prefills >= view.config.max_cold_prefills:
        return "another cold prefill is running"
    home = view.lanes.home(worker.name)
    run_id, pool = state.call.run_id, state.call.pool
    if worker.flights and home.waiting_tokens_beside(run_id, pool):
        return "warm calls go first"
    held_tokens = worker.reserved.tokens + home.claimed_tokens(run_id, pool, state.due_s is not None)
    if held_tokens and held_tokens + state.footprint_tokens > view.config.tier_margin * worker.tiers_tokens:
        return "protected: its tiers belong to contexts inside their break-even time"
    return ""


def _lapsed(state: CallState, view: PoolView) -> bool:
    return view.now_s - state.arrived_s > view.config.tier_lapse_s

"""Which worker serves this call? The fabric's own rule: price every worker in seconds, hold back what would destroy more.

    price = wait + restore + prefill of what is not warm + decode at that batch
          + contention (pipelines that live there will be in the way at later hops)
          + interference (running decodes that this prefill slows)
          + displacement (what a full cache must forget, at the odds that it is asked for again)

Warmth counts what is in flight. A shared system prompt is worth only its own few prefill seconds, so it cannot herd a
fleet of agents onto one worker: contention grows with each pipeline that settles there.

The cheapest worker is used if it can start the call soon. If it cannot, the call waits in our queue (late binding), where
urgency and not arrival decides. A *cold* call (more than `cold_tokens` to prefill) obeys the hold-back rule besides: one
cold prefill per worker at a time, and never into memory that belongs to contexts inside their break-even time, not even on
a worker that runs nothing at the moment; holding is then the decision. Contexts of pipelines without a deadline make way for
calls that have one.

A call that has waited `lapse_s` has lapsed: contexts make way for it, but on each worker no more often than that lapsed
prefills take `yield_share` of its time. (Without this bound overload ends all protection, for everybody has waited too
long.) The worker that a call waits for which has waited `reserve_s` takes nothing new until it fits (one worker per pool at a
time), so that small calls cannot overtake a large one for ever.
"""

from math import inf

from amf.core.cost import prefill_s
from amf.core.decisions import Because, Price
from amf.core.policy.interface import Placement, PoolView
from amf.core.state.pipelines import CallState
from amf.core.state.warmth import COLD, Hit
from amf.core.state.workers import WorkerState

_Quote = tuple[float, int, int, str, WorkerState, Hit]  # total_s, residents, running, name, worker, hit


def hold_back(state: CallState, view: PoolView) -> Placement:
    """The cheapest worker that can start the call soon, or none: then it waits. Unit of every price: seconds."""
    duty, service_s = view.profiles.duty(state.call.pool)
    contention_s = duty * service_s / 2.0  # per resident: the chance that it is in service, times the mean rest of one
    quotes = _quotes(state, contention_s, view)
    quotes.sort()
    best_s, best, obstacle, notes = inf, quotes[0], "", {}
    for quote in quotes:
        if quote[0] >= best_s:
            break
        reason = _obstacle(state, quote[4], quote[5], view)
        notes[quote[3]] = reason
        if reason in (_PROTECTED, _RESERVED):
            continue
        total_s = quote[0] + (service_s if reason.startswith(_MEMORY) else 0.0)
        if total_s < best_s:
            best_s, best, obstacle = total_s, quote, reason
    name, hit_tokens = best[3], best[5].tokens
    claim = name if obstacle and reserves(state, view) and not view.reserved else ""
    if state.held and (obstacle or best_s == inf):
        return held(state, HELD_AS_BEFORE, view, claim)
    alternatives = tuple(
        _price(quote, contention_s, view, notes, state) for quote in quotes[: view.config.max_alternatives]
    )
    if best_s == inf:
        reason = f"held on every worker: {notes[quotes[0][3]]}"
        return held(state, Because(reason=reason, alternatives=alternatives), view)
    if obstacle:
        reason = f"held for the cheapest worker {name}: {obstacle}"
        return held(state, Because(reason=reason, alternatives=alternatives), view, claim)
    reason = f"cheapest of {len(quotes)} workers, {hit_tokens} of {state.call.prompt_tokens} prompt tokens warm"
    return Placement(name, Because(reason=reason, alternatives=alternatives), hit_tokens)


def usable(state: CallState, view: PoolView) -> list[WorkerState]:
    """Workers where the call has not failed yet; all of them once it has failed everywhere."""
    if not state.excluded:
        return view.workers
    return [worker for worker in view.workers if worker.name not in state.excluded] or view.workers


def home_of(state: CallState, view: PoolView) -> WorkerState | None:
    """The worker that had the program's last call in this pool, if the call may go there."""
    lane = view.lanes.get(state.call.run_id, state.call.pool)
    if lane is None:
        return None
    return next((worker for worker in usable(state, view) if worker.name == lane.worker), None)


def held(state: CallState, because: Because, view: PoolView, claim: str = "") -> Placement:
    """It waits. Is what it would find too little on every worker?"""
    prompt_tokens, cold_tokens = state.call.prompt_tokens, view.config.cold_tokens
    hits = view.warmth.hits(state.call.prefix, view.now_s).values() if prompt_tokens > cold_tokens else ()
    cold = prompt_tokens - max((hit.tokens for hit in hits), default=0) > cold_tokens
    return Placement(None, because, reserve=claim, cold=cold)


def lapsed(state: CallState, view: PoolView) -> bool:
    """Has it waited so long that contexts make way for it?"""
    return view.now_s - state.arrived_s > view.config.lapse_s


def reserves(state: CallState, view: PoolView) -> bool:
    """Has it waited so long that its worker is kept free for it?"""
    return view.now_s - state.arrived_s > view.config.reserve_s


def yields(worker: WorkerState, view: PoolView) -> bool:
    """May contexts make way for a lapsed call here already?"""
    return view.config.yield_share > 0.0 and view.now_s >= worker.yields_from_s


def _quotes(state: CallState, contention_s: float, view: PoolView) -> list[_Quote]:
    """Every worker's price, before asking whether it can start the call. The hot loop: one pass, no calls without a hit."""
    now_s, prompt_tokens = view.now_s, state.call.prompt_tokens
    hits, held = view.warmth.hits(state.call.prefix, now_s), view.warmth.predicted_tokens
    share, output_tokens = view.config.interference_share, state.expected_output_tokens
    reuse = view.config.displaced_reuse
    homes_get, own = view.lanes.homes.get, _own_worker(state, view)
    priced: tuple[object, object] = (None, None)  # most workers share a profile, and the hit of a common system prompt
    profile_s, new_tokens, restores = 0.0, prompt_tokens, False
    quotes: list[_Quote] = []
    for worker in usable(state, view):
        name, profile = worker.name, worker.profile
        hit = hits.get(name, COLD)
        if hit is not priced[0] or profile is not priced[1]:
            priced, new_tokens, restores = (hit, profile), prompt_tokens - hit.tokens, hit.tokens != hit.hbm_tokens
            profile_s = prefill_s(profile, new_tokens, hit.tokens)
        running, home = len(worker.flights), homes_get(name)
        residents = home.residents - (name == own) if home is not None else 0
        total_s = (
            profile_s * worker.prefill_scale * (1.0 + share * running)
            + output_tokens * worker.decode_step_s
            + residents * contention_s
        )
        if worker.prefill_free_s > now_s:
            total_s += worker.prefill_free_s - now_s
        if restores:
            total_s += worker.restore_s(hit.tokens - hit.hbm_tokens, view.config)
        overflow_tokens = held[name] + new_tokens - worker.kv_tokens
        if overflow_tokens > 0 and (kv_tokens := worker.kv_tokens):  # as `_displacement_s`, without its calls
            forgotten_s = prefill_s(profile, overflow_tokens if overflow_tokens < kv_tokens else kv_tokens, 0)
            total_s += reuse * (forgotten_s * worker.prefill_scale)
        quotes.append((total_s, residents, running, name, worker, hit))
    return quotes


def _own_worker(state: CallState, view: PoolView) -> str:
    """Where this call's own pipeline lives and is counted as a resident."""
    lane = view.lanes.get(state.call.run_id, state.call.pool)
    return lane.worker if lane is not None and lane.resident_until_s > view.now_s else ""


def _obstacle(state: CallState, worker: WorkerState, hit: Hit, view: PoolView) -> str:
    """Why the call cannot start soon on this worker; empty if it can, or if it never will and the engine must say so."""
    if 0 < worker.kv_tokens <= state.call.prompt_tokens:
        return ""
    if not worker.flights:
        return "" if _fits_beside_protected(state, worker, hit, view) else _PROTECTED
    if worker.name in view.reserved:
        return _RESERVED
    call, config = state.call, view.config
    if worker.running >= worker.spec.max_running:
        return f"all {worker.spec.max_running} sequences are taken"
    if 0 < worker.spec.kv_tokens < worker.reserved.tokens + state.footprint_tokens:
        needed_tokens = worker.needed_tokens(call, state.footprint_tokens)
        if needed_tokens > worker.free_tokens():
            return f"{_MEMORY}: {needed_tokens} tokens needed, {max(worker.free_tokens(), 0)} not reserved"
    if call.prompt_tokens - hit.tokens > config.cold_tokens:
        if worker.cold_prefills >= config.max_cold_prefills:
            return "another cold prefill is running"
        if not _fits_beside_protected(state, worker, hit, view):
            return _PROTECTED
    elif worker.backlog_s(view.now_s) > config.start_soon_s:
        return f"prefill backlog of {worker.backlog_s(view.now_s):.2f} s"
    return ""


_PROTECTED = "protected: the memory belongs to contexts inside their break-even time"
_MEMORY = "memory"
HELD_AS_BEFORE = Because(reason="held as before")  # nobody is told twice
_RESERVED = "reserved: kept free for a call that has waited too long"


def _fits_beside_protected(state: CallState, worker: WorkerState, hit: Hit, view: PoolView) -> bool:
    """Only cold calls are measured against protected contexts, and never against their own pipeline's."""
    call, config = state.call, view.config
    if call.prompt_tokens - hit.tokens <= config.cold_tokens or worker.spec.kv_tokens <= 0:
        return True
    protected_tokens = 0
    if not (lapsed(state, view) and yields(worker, view)):
        home = view.lanes.home(worker.name)
        protected_tokens = home.claimed_tokens(call.run_id, call.pool, state.due_s is not None)
    needed_tokens = worker.needed_tokens(call, state.footprint_tokens)
    if worker.reserved.tokens + protected_tokens + needed_tokens <= worker.spec.kv_tokens:
        return True
    return protected_tokens <= 0 and not worker.flights  # an empty worker takes what no worker could hold


def _displacement_s(worker: WorkerState, overflow_tokens: int, view: PoolView) -> float:
    """Expected seconds to compute again what a full worker forgets for this call."""
    overflow_tokens = min(overflow_tokens, worker.spec.kv_tokens)
    return view.config.displaced_reuse * worker.prefill_s(overflow_tokens, 0)


def _price(quote: _Quote, contention_s: float, view: PoolView, notes: dict[str, str], state: CallState) -> Price:
    """A quote's parts, computed again only for the few that are kept."""
    total_s, residents, running, name, worker, hit = quote
    new_tokens = state.call.prompt_tokens - hit.tokens
    own_s = worker.prefill_s(new_tokens, hit.tokens)
    externality_s = own_s * view.config.interference_share * running
    overflow_tokens = view.warmth.predicted_tokens[name] + new_tokens - worker.kv_tokens
    if overflow_tokens > 0 and worker.kv_tokens:
        externality_s += _displacement_s(worker, overflow_tokens, view)
    if hit.tokens != hit.hbm_tokens:
        own_s += worker.restore_s(hit.tokens - hit.hbm_tokens, view.config)
    return Price(
        worker=name,
        total_s=total_s,
        hit_tokens=hit.tokens,
        wait_s=worker.backlog_s(view.now_s),
        prefill_s=own_s,
        decode_s=state.expected_output_tokens * worker.decode_step_s,
        contention_s=residents * contention_s,
        externality_s=externality_s,
        note=notes.get(name, ""),
    )

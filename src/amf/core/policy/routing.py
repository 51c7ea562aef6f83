"""Which worker serves this call? The fabric's own rule: price every worker in seconds, hold back what would destroy more.

    price = wait + restore + prefill of what is not warm + decode at that batch
          + contention (pipelines that live there will be in the way at later hops)
          + interference (running decodes that this prefill slows)

Warmth counts what is in flight. A shared system prompt is worth only its own few prefill seconds, so it cannot herd a
fleet of agents onto one worker: contention grows with each pipeline that settles there.

The cheapest worker is used if it can start the call soon. If it cannot, the call waits in our queue (late binding), where
urgency and not arrival decides. A *cold* call (more than `cold_tokens` to prefill) obeys the hold-back rule besides: one
cold prefill per worker at a time, and never into memory that belongs to contexts inside their break-even time; holding is
then the decision. A call that has waited `lapse_s` yields only to calls that wait and are still warm.
"""

from math import inf

from amf.core.decisions import Because, Price
from amf.core.policy.interface import Placement, PoolView
from amf.core.state.pipelines import CallState
from amf.core.state.warmth import COLD, Hit
from amf.core.state.workers import WorkerState

_Quote = tuple[float, int, int, str, Hit, str]  # total_s, residents, running, worker, hit, why it cannot start (or "")


def hold_back(state: CallState, view: PoolView) -> Placement:
    call = state.call
    hits = view.warmth.hits(call.prefix, view.now_s)
    duty, service_s = view.profiles.duty(call.pool)
    contention_s = duty * service_s / 2.0  # per resident: the chance it is in service, times the mean rest of a service
    candidates = usable(state, view)
    quotes: list[_Quote] = []
    cold_s: dict[int, float] = {}  # prefill seconds without any hit, by profile: most workers share them
    for worker in candidates:
        hit = hits.get(worker.name, COLD)
        residents = _other_residents(state, worker, view)
        if hit.tokens:
            prefill_s = worker.prefill_s(call.prompt_tokens - hit.tokens, hit.tokens)
        else:
            key = id(worker.spec.profile)
            if key not in cold_s:
                cold_s[key] = worker.prefill_s(call.prompt_tokens, 0) / worker.prefill_scale
            prefill_s = cold_s[key] * worker.prefill_scale
        total_s = (
            worker.backlog_s(view.now_s)
            + _restore_s(worker, hit, view)
            + prefill_s * (1.0 + view.config.interference_share * worker.running)
            + state.expected_output_tokens * worker.decode_step_s
            + residents * contention_s
        )
        obstacle = _obstacle(state, worker, hit, view)
        if obstacle.startswith("protected"):
            total_s = inf
        elif obstacle.startswith("memory"):
            total_s += service_s
        quotes.append((total_s, residents, worker.running, worker.name, hit, obstacle))
    return _choose(quotes, state, view)


def usable(state: CallState, view: PoolView) -> list[WorkerState]:
    """Workers where the call has not failed yet; all of them once it has failed everywhere."""
    if not state.excluded:
        return view.workers
    return [worker for worker in view.workers if worker.name not in state.excluded] or view.workers


def _choose(quotes: list[_Quote], state: CallState, view: PoolView) -> Placement:
    ranked = sorted(quotes, key=lambda quote: quote[:4])
    because = tuple(_price(quote, state, view) for quote in ranked[: view.config.max_alternatives])
    total_s, _, _, name, hit, obstacle = ranked[0]
    if not obstacle:
        warm = f"{hit.tokens} of {state.call.prompt_tokens} prompt tokens warm"
        return Placement(
            name, Because(reason=f"cheapest of {len(ranked)} workers, {warm}", alternatives=because), hit.tokens
        )
    if total_s == inf:
        reason = f"held: on every worker {obstacle}"
    else:
        reason = f"held for the cheapest worker {name}: {obstacle}"
    return Placement(None, Because(reason=reason, alternatives=because))


def _obstacle(state: CallState, worker: WorkerState, hit: Hit, view: PoolView) -> str:
    """Why the call cannot start soon on this worker; empty if it can."""
    if not worker.flights:
        return "" if _fits_beside_protected(state, worker, hit, view) else _PROTECTED
    call, config = state.call, view.config
    if worker.running >= worker.spec.max_running:
        return f"all {worker.spec.max_running} sequences are taken"
    footprint_tokens = call.prompt_tokens + int(state.expected_output_tokens)
    if 0 < worker.spec.kv_tokens < worker.committed_tokens + footprint_tokens:
        return f"memory: {footprint_tokens} tokens needed, {max(worker.free_tokens(), 0)} not committed"
    if call.prompt_tokens - hit.tokens > config.cold_tokens:
        if worker.cold_prefills >= config.max_cold_prefills:
            return "another cold prefill is running"
        if not _fits_beside_protected(state, worker, hit, view):
            return _PROTECTED
    elif worker.backlog_s(view.now_s) > config.start_soon_s:
        return f"prefill backlog of {worker.backlog_s(view.now_s):.2f} s"
    return ""


_PROTECTED = "protected: the memory belongs to contexts inside their break-even time"


def _fits_beside_protected(state: CallState, worker: WorkerState, hit: Hit, view: PoolView) -> bool:
    """Only cold calls are measured against protected contexts, and never against their own pipeline's."""
    call, config = state.call, view.config
    if call.prompt_tokens - hit.tokens <= config.cold_tokens or worker.spec.kv_tokens <= 0:
        return True
    home = view.lanes.home(worker.name)
    protected_tokens = home.waiting_tokens
    if view.now_s - state.arrived_s <= config.lapse_s:
        protected_tokens += home.protected_tokens
    own = view.lanes.get(call.run_id, call.pool)
    if own is not None and own.worker == worker.name and own.idle:
        protected_tokens -= own.context_tokens
    needed_tokens = call.prompt_tokens + int(state.expected_output_tokens)
    if worker.committed_tokens + protected_tokens + needed_tokens <= worker.spec.kv_tokens:
        return True
    return protected_tokens <= 0 and not worker.flights  # an empty worker takes what no worker could hold


def _other_residents(state: CallState, worker: WorkerState, view: PoolView) -> int:
    home = view.lanes.home(worker.name)
    own = (state.call.run_id, state.call.pool) in home.lanes
    return home.residents - own if home.residents else 0


def _restore_s(worker: WorkerState, hit: Hit, view: PoolView) -> float:
    """Seconds to load back what is warm only in a lower tier."""
    lower_tokens = hit.tokens - hit.hbm_tokens
    if not lower_tokens:
        return 0.0
    return lower_tokens * worker.spec.profile.kv_bytes_per_token / view.config.restore_bytes_per_s


def _price(quote: _Quote, state: CallState, view: PoolView) -> Price:
    """A quote's parts, computed again only for the few that are kept."""
    total_s, residents, _, name, hit, obstacle = quote
    worker = next(worker for worker in view.workers if worker.name == name)
    call = state.call
    duty, service_s = view.profiles.duty(call.pool)
    prefill_s = worker.prefill_s(call.prompt_tokens - hit.tokens, hit.tokens)
    return Price(
        worker=name,
        total_s=total_s,
        hit_tokens=hit.tokens,
        wait_s=worker.backlog_s(view.now_s),
        prefill_s=prefill_s + _restore_s(worker, hit, view),
        decode_s=state.expected_output_tokens * worker.decode_step_s,
        contention_s=residents * duty * service_s / 2.0,
        externality_s=prefill_s * view.config.interference_share * worker.running,
        note=obstacle,
    )

"""Is an alternative of a branch group worth launching now? Those that are needed anyway are calls like others; the rest is
speculation: it goes behind all that is needed, and is launched only where it is worth its price.

    launch iff  odds x saved  >=  branch_price x (1 - odds) x cost

    odds    that it will be needed (`core/state/branches.py`); then its work is no loss, whenever it is done
    saved   seconds that its pipeline would otherwise lose: its own expected service, and the client's test of it
    cost    seconds that others lose by it: its prefill, and what its sequence adds to every decode iteration, times the calls
            that run on that worker or wait for one; and what a full worker forgets for it

So a busy fleet speculates less and an idle one more, and what is all but certain is hardly priced at all. One that is not
launched waits: for a lower price, until those ahead of it fail, or until its group is decided. Source of the form: the study
in docs/speculation.md, which priced the whole externality and refused likely predictions in overload for that.
"""

from amf.core.cost import decode_iteration_s
from amf.core.decisions import Because
from amf.core.policy.interface import Placement, PoolView, View
from amf.core.policy.ordering import LAST_S, renewed_slack
from amf.core.policy.routing import HELD_AS_BEFORE, held
from amf.core.state.outcomes import needed_odds
from amf.core.state.pipelines import CallState
from amf.core.state.workers import WorkerState


def odds_of(state: CallState, view: View) -> float:
    """That the call's branch will be needed; 1 for what is in none."""
    if not state.call.branch:
        return 1.0
    pipeline = view.pipelines.get(state.call.run_id)
    return needed_odds(pipeline, state.call.branch, view.outcomes, view.now_s, view.config.branch_patience_s)


def needed_first(state: CallState, due_s: float | None, view: View) -> float:
    """The fabric's order, with speculation behind all that is needed."""
    latest_start_s = renewed_slack(state, due_s, view)
    return latest_start_s + LAST_S if state.call.branch and odds_of(state, view) < 1.0 else latest_start_s


def always(state: CallState, placement: Placement, view: PoolView) -> Placement:
    """Every alternative is launched: kill on commit, without a price."""
    return placement


def priced(state: CallState, placement: Placement, view: PoolView) -> Placement:
    """Where it was placed, if it is worth its price there; else it waits."""
    odds = odds_of(state, view)
    if odds >= 1.0:
        return placement
    worker = next(worker for worker in view.workers if worker.name == placement.worker)
    saved_s = odds * _saved_s(state, worker, placement, view)
    price_s = view.config.branch_price * (1.0 - odds) * _cost_s(state, worker, placement, view)
    if saved_s >= price_s:
        reason = f"a branch needed with odds {odds:.2f}: saves {saved_s:.2f} s for {price_s:.2f} s; "
        because = Because(reason=reason + placement.because.reason, alternatives=placement.because.alternatives)
        return Placement(placement.worker, because, placement.hit_tokens)
    if state.held:
        return held(state, HELD_AS_BEFORE, view)
    reason = f"not launched: needed with odds {odds:.2f}, it saves {saved_s:.2f} s and costs {price_s:.2f} s on {worker.name}"
    return held(state, Because(reason=reason, alternatives=placement.because.alternatives), view)


def _saved_s(state: CallState, worker: WorkerState, placement: Placement, view: PoolView) -> float:
    """Expected service of the call, while nothing is known what it takes alone, and of the client's test after it."""
    call = state.call
    group = call.branch.split("/")[-2]
    alone_s, _ = worker.toll_s(call.prompt_tokens, placement.hit_tokens or 0, int(state.expected_output_tokens))
    return (view.profiles.expected_service_s(call) or alone_s) + view.outcomes.test_s((call.graph, group))


def _cost_s(state: CallState, worker: WorkerState, placement: Placement, view: PoolView) -> float:
    prompt_tokens = state.call.prompt_tokens
    hit_tokens = placement.hit_tokens or 0
    new_tokens = prompt_tokens - hit_tokens
    batch, kv_tokens = worker.running, max(worker.committed_tokens, 0)
    step_s = decode_iteration_s(worker.profile, batch + 1, kv_tokens + state.footprint_tokens)
    step_s -= decode_iteration_s(worker.profile, batch, kv_tokens) if batch else 0.0
    own_s = worker.prefill_s(new_tokens, hit_tokens)
    if batch:  # alone, it slows nobody's decoding
        own_s += state.expected_output_tokens * max(step_s, 0.0) * worker.decode_scale
    delayed = batch + _needed_waiting(view) / len(view.workers)
    overflow_tokens = view.warmth.predicted_tokens[worker.name] + new_tokens - worker.kv_tokens
    forgotten_s = 0.0
    if overflow_tokens > 0 and worker.kv_tokens:
        forgotten_s = worker.prefill_s(min(overflow_tokens, worker.kv_tokens), 0) * view.config.displaced_reuse
    return own_s * delayed + forgotten_s


def _needed_waiting(view: PoolView) -> int:
    """Calls that wait in the pool and are no speculation."""
    return view.remembered(
        "needed waiting",
        lambda: sum(not state.call.branch or odds_of(state, view) >= 1.0 for state in view.waiting),
    )

"""The opponents' routing rules, each as published, with its defaults in `FabricConfig`. They bind at once: whatever waits,
waits in the engine. What they do not know, they are not given."""

from hashlib import blake2b
from math import ceil

from amf.core.decisions import Because, Price
from amf.core.policy.interface import Placement, PoolView
from amf.core.policy.routing import usable
from amf.core.state.pipelines import CallState
from amf.core.state.warmth import COLD
from amf.core.state.workers import WorkerState


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


def prefix_affinity(state: CallState, view: PoolView) -> Placement:
    """The cache-aware rule of the SGLang router: balance when load is uneven in absolute and relative terms; else the
    longest match if it is at least `prefix_match_ratio` of the prompt; else the worker that holds least."""
    workers, config = usable(state, view), view.config
    loads = [w.running for w in workers]
    if max(loads) - min(loads) > config.prefix_balance_calls and max(loads) > config.prefix_balance_ratio * min(loads):
        return least_loaded(state, view)
    hits = view.warmth.hits(state.call.prefix, view.now_s)
    best = min(workers, key=lambda w: (-hits.get(w.name, COLD).tokens, w.name))
    hit_tokens = hits.get(best.name, COLD).tokens
    if hit_tokens > config.prefix_match_ratio * state.call.prompt_tokens:
        return Placement(best.name, Because(reason=f"longest match, {hit_tokens} tokens"), hit_tokens)
    worker = min(workers, key=lambda w: (view.warmth.resident_tokens(w.name), w.running, w.name))
    hit_tokens = hits.get(worker.name, COLD).tokens
    return Placement(worker.name, Because(reason="no long match: the worker that holds least"), hit_tokens)


def kv_cost(state: CallState, view: PoolView) -> Placement:
    """Dynamo's KV router: cost = blocks to prefill (the worker's pending ones and this prompt's, minus its overlap) + blocks
    active in decode, lowest wins. Unit: KV blocks. Ties go by name here, at random there."""
    hits = view.warmth.hits(state.call.prefix, view.now_s)
    weight = view.config.kv_overlap_weight

    def cost(w: WorkerState) -> float:
        block = w.spec.block_tokens
        prefill = (w.pending_prefill_tokens + state.call.prompt_tokens) / block
        overlap = weight * hits.get(w.name, COLD).tokens / block
        return max(prefill - overlap, 0.0) + (w.committed_tokens + state.call.prompt_tokens) / block

    ranked = sorted((cost(w), w.name) for w in usable(state, view))
    prices = tuple(
        Price(worker=name, total_s=0.0, hit_tokens=hits.get(name, COLD).tokens, note=f"cost {blocks:.0f} blocks")
        for blocks, name in ranked[: view.config.max_alternatives]
    )
    name = ranked[0][1]
    return Placement(name, Because(reason="lowest KV cost in blocks", alternatives=prices), hits.get(name, COLD).tokens)


def essay(state: CallState, view: PoolView) -> Placement:
    """The essay's KV_REUSE_THRESHOLD rule: the least loaded warm worker while its queue is below the threshold, else the
    least loaded of all. Any warm prefix counts as warm."""
    hits = view.warmth.hits(state.call.prefix, view.now_s)
    workers = usable(state, view)
    warm = [w for w in workers if hits.get(w.name, COLD).tokens]
    if warm:
        worker = min(warm, key=lambda w: (w.running, w.name))
        if worker.running < view.config.kv_reuse_threshold_calls:
            return Placement(worker.name, Because(reason="warm, queue below threshold"), hits[worker.name].tokens)
    return least_loaded(state, view)


def _rank(session: str, worker: str) -> bytes:
    return blake2b(f"{session}\0{worker}".encode(), digest_size=8).digest()

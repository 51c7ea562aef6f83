"""The cache-aware rule of the SGLang router (and its successor SMG). It binds at once."""

from amf.core.decisions import Because
from amf.core.policy.interface import Placement, PoolView
from amf.core.policy.rivals.balance import least_loaded
from amf.core.policy.routing import usable
from amf.core.state.pipelines import CallState
from amf.core.state.warmth import COLD


def prefix_affinity(state: CallState, view: PoolView) -> Placement:
    """Balance when load is uneven in absolute and relative terms; else the longest match if it is at least
    `prefix_match_ratio` of the prompt; else the worker that holds least. Not reproduced: their tree over characters."""
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

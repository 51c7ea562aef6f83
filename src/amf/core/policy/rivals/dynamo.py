"""The KV router of NVIDIA Dynamo and its preset for agents. Both bind at once.

    cost = scale x max(0, blocks to prefill - credit x overlap in HBM - 0.75 x overlap in a lower tier)
           + blocks active in decode + weight x calls in flight                 the lowest cost wins; unit: KV blocks

Source: Dynamo's router design, its cost selector and its router presets (`--agentic`: credit 2, scale 4, weight 64, which
they validated with blocks of 16 tokens). Blocks to prefill are what is queued on the worker and this prompt. Not reproduced:
the softmax over costs and the decay of the credit (both off by default), 0.25 for what lies on disk (every lower tier
counts as the host's), and ties at random (by name here). Expected output counts as active from the start.
"""

from amf.core.decisions import Because, Price
from amf.core.policy.interface import Placement, PoolView
from amf.core.policy.routing import usable
from amf.core.state.pipelines import CallState
from amf.core.state.warmth import COLD
from amf.core.state.workers import WorkerState


def kv_cost(state: CallState, view: PoolView) -> Placement:
    """The default weights: credit `kv_overlap_weight`, scale 1, no weight for calls in flight."""
    return _lowest_cost(state, view, view.config.kv_overlap_weight, 1.0, 0.0)


def agentic(state: CallState, view: PoolView) -> Placement:
    """The `--agentic` preset: warmth counts twice, prefill four times, and a call in flight as much as 64 blocks."""
    config = view.config
    weights = config.agentic_overlap_credit, config.agentic_prefill_scale, config.agentic_active_call_blocks
    return _lowest_cost(state, view, *weights)


def _lowest_cost(state: CallState, view: PoolView, credit: float, scale: float, call_blocks: float) -> Placement:
    hits = view.warmth.hits(state.call.prefix, view.now_s)
    prompt_tokens, lower_tier = state.call.prompt_tokens, view.config.dynamo_lower_tier_weight

    def cost(w: WorkerState) -> float:
        hit = hits.get(w.name, COLD)
        overlap_tokens = credit * hit.hbm_tokens + lower_tier * (hit.tokens - hit.hbm_tokens)
        prefill_tokens = max(w.pending_prefill_tokens + prompt_tokens - overlap_tokens, 0.0)
        return (scale * prefill_tokens + w.committed_tokens + prompt_tokens) / w.spec.block_tokens + (
            call_blocks * w.running
        )

    ranked = sorted((cost(w), w.name) for w in usable(state, view))
    prices = tuple(
        Price(worker=name, total_s=0.0, hit_tokens=hits.get(name, COLD).tokens, note=f"cost {blocks:.0f} blocks")
        for blocks, name in ranked[: view.config.max_alternatives]
    )
    name = ranked[0][1]
    return Placement(name, Because(reason="lowest KV cost in blocks", alternatives=prices), hits.get(name, COLD).tokens)

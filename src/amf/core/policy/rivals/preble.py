"""The E2 rule of Preble (ICLR 2025): exploit what is cached, or explore by load. It binds at once.

    cached part >= uncached part   among the workers with the longest match, the one with least load; the least loaded of
                                   all if that one is the most loaded, `preble_balance_ratio` times above the least
    otherwise                      the worker with the least load + eviction cost

Unit: seconds. *Load* is the prefill sent in the last three minutes and the decoding of what runs; *eviction cost* the
prefill of what a full worker must forget for this prompt. Source: the published rule and Preble's code.

Not reproduced: their window ends after three minutes, ours fades with that time constant; they weigh a prefix by how often
it missed and a victim by how often it was asked for, here each counts once, since we do not see which one the engine will
evict; replication of hot prefixes by a detector of overload; and the wait-time fair queue inside their engine.
"""

from amf.core.decisions import Because
from amf.core.policy.interface import Placement, PoolView
from amf.core.policy.routing import usable
from amf.core.state.pipelines import CallState
from amf.core.state.warmth import COLD
from amf.core.state.workers import WorkerState


def exploit_or_explore(state: CallState, view: PoolView) -> Placement:
    """E2 on this fabric's registry."""
    workers, prompt_tokens = usable(state, view), state.call.prompt_tokens
    hits = view.warmth.hits(state.call.prefix, view.now_s)
    loads = {w.name: _load_s(w, state, view) for w in workers}
    longest = max(hits.get(w.name, COLD).tokens for w in workers)
    exploits = longest > 0 and 2 * longest >= prompt_tokens
    if exploits:
        holders = [w for w in workers if hits.get(w.name, COLD).tokens == longest]
        worker = min(holders, key=lambda w: (loads[w.name], w.name))
        reason = f"exploit: {longest} of {prompt_tokens} tokens cached, load {loads[worker.name]:.1f} s"
        most_s, least_s = max(loads.values()), min(loads.values())
        if loads[worker.name] == most_s > view.config.preble_balance_ratio * least_s:
            worker = min(workers, key=lambda w: (loads[w.name], w.name))
            reason = f"rebalance: the holder is the most loaded with {most_s:.1f} s, the least has {least_s:.1f} s"
    else:
        costs = {
            w.name: loads[w.name] + _eviction_s(w, prompt_tokens - hits.get(w.name, COLD).tokens, view) for w in workers
        }
        worker = min(workers, key=lambda w: (costs[w.name], w.name))
        reason = f"explore: least load and eviction, {costs[worker.name]:.1f} s"
    return Placement(worker.name, Because(reason=reason), hits.get(worker.name, COLD).tokens)


def _load_s(worker: WorkerState, state: CallState, view: PoolView) -> float:
    decode_s = worker.running * state.expected_output_tokens * worker.decode_step_s
    return worker.recent_prefill_s(view.now_s) + decode_s


def _eviction_s(worker: WorkerState, new_tokens: int, view: PoolView) -> float:
    """Seconds to compute again what must make room for so many new tokens."""
    overflow_tokens = view.warmth.resident_tokens(worker.name) + new_tokens - worker.kv_tokens
    if overflow_tokens <= 0 or not worker.kv_tokens:
        return 0.0
    return worker.prefill_s(min(overflow_tokens, worker.kv_tokens), 0)

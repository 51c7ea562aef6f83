"""The endpoint picker of llm-d without a configuration file: three scorers between 0 and 1, weighted 2-2-3; the highest sum
wins. It binds at once.

    queue       (longest queue - own queue) / (longest - shortest), 1 for all if they are equal      weight 2
    kv-cache    1 - share of the KV memory in use                                                    weight 2
    prefix      matched share of the prompt                                                          weight 3

Source: the llm-d router's default plugins, and the queue scorer of the Gateway API inference extension it builds on. Not
reproduced: their approximate prefix index and scraped, therefore stale, metrics. Here a worker's queue is the calls in
flight that still wait behind another's prefill, and its memory in use what those in flight take; both are this gateway's own
count, so fresher than the original's. Ties go by name here, at random there.
"""

from amf.core.decisions import Because, Price
from amf.core.policy.interface import Placement, PoolView
from amf.core.policy.routing import usable
from amf.core.state.pipelines import CallState
from amf.core.state.warmth import COLD
from amf.core.state.workers import WorkerState


def llm_d(state: CallState, view: PoolView) -> Placement:
    """Highest weighted sum of the queue, KV memory and prefix scores."""
    config, prompt_tokens = view.config, max(state.call.prompt_tokens, 1)
    workers = usable(state, view)
    hits = view.warmth.hits(state.call.prefix, view.now_s)
    queues = {w.name: _queue(w) for w in workers}
    longest, shortest = max(queues.values()), min(queues.values())

    def score(w: WorkerState) -> float:
        queue = (longest - queues[w.name]) / (longest - shortest) if longest > shortest else 1.0
        free = max(1.0 - w.committed_tokens / w.kv_tokens, 0.0) if w.kv_tokens else 1.0
        matched = hits.get(w.name, COLD).tokens / prompt_tokens
        return config.llm_d_queue_weight * queue + config.llm_d_kv_weight * free + config.llm_d_prefix_weight * matched

    ranked = sorted((-score(w), w.name) for w in workers)
    prices = tuple(
        Price(worker=name, total_s=0.0, hit_tokens=hits.get(name, COLD).tokens, note=f"score {-negative:.2f}")
        for negative, name in ranked[: config.max_alternatives]
    )
    name = ranked[0][1]
    return Placement(name, Because(reason="highest weighted score", alternatives=prices), hits.get(name, COLD).tokens)


def _queue(worker: WorkerState) -> int:
    """Calls the engine has not begun: all that prefill but the one it is at."""
    return max(sum(flight.prefilling for flight in worker.flights.values()) - 1, 0)

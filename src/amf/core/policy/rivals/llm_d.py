"""The endpoint picker of llm-d without a configuration file: three scorers between 0 and 1, weighted 2-2-3; the highest sum
wins. It binds at once.

    queue       (longest queue - own queue) / (longest - shortest), 1 for all if they are equal      weight 2
    kv-cache    1 - share of the KV memory in use                                                    weight 2
    prefix      matched share of the prompt                                                          weight 3

With flow control (`llm-d-las`, off by default there) calls wait before the picker while the pool is *saturated*:

    mean over workers of max(queue / 5, KV use / 0.8) >= 1

and leave by least attained service. A call's score is 0.8 x (1 - attained / most attained) + 0.2 x (its wait / longest
wait), the highest first; attained is a program's prompt tokens plus twice its output tokens, halved every 60 s.

Source: the llm-d router's default plugins, its utilization detector and program-aware fairness (least attained service), and
the queue scorer of the Gateway API inference extension it builds on. Queue and KV use are what the workers *report*, as late
as that is; of a worker that has reported nothing they are this gateway's own count: the calls in flight that still wait
behind another's prefill, and the memory of those in flight. Not reproduced: their approximate prefix index, counting a
worker whose report is older than 200 ms as saturated, refusing what has waited 60 s, priority bands and holdback. Service
counts per program and pool. Ties go by name here, at random there.
"""

from dataclasses import dataclass

from amf.core.decisions import Because, Price
from amf.core.policy.interface import Placement, PoolView, View
from amf.core.policy.routing import usable
from amf.core.state.pipelines import CallState, CallStatus
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
        free = max(1.0 - _kv_use(w), 0.0)
        matched = hits.get(w.name, COLD).tokens / prompt_tokens
        return config.llm_d_queue_weight * queue + config.llm_d_kv_weight * free + config.llm_d_prefix_weight * matched

    ranked = sorted((-score(w), w.name) for w in workers)
    prices = tuple(
        Price(worker=name, total_s=0.0, hit_tokens=hits.get(name, COLD).tokens, note=f"score {-negative:.2f}")
        for negative, name in ranked[: config.max_alternatives]
    )
    name = ranked[0][1]
    return Placement(name, Because(reason="highest weighted score", alternatives=prices), hits.get(name, COLD).tokens)


def flow_controlled(state: CallState, view: PoolView) -> Placement:
    """The same while the pool is not saturated; else the call waits."""
    config = view.config
    shares = [max(_queue(w) / config.llm_d_queue_limit, _kv_use(w) / config.llm_d_kv_limit) for w in view.workers]
    saturation = sum(shares) / len(shares)
    if saturation >= 1.0:
        return Placement(None, Because(reason=f"flow control: the pool's saturation is {saturation:.2f}, the bound 1"))
    return llm_d(state, view)


def least_attained_service(state: CallState, due_s: float | None, view: View) -> float:
    """The negative score of its program, so that the highest goes first. Between -1 and 0."""
    pool, now_s = state.call.pool, view.now_s
    most = view.remembered(("llm-d", pool), lambda: _most(pool, view))
    pipeline = view.pipelines.get(state.call.run_id)
    attained = pipeline.attained_tokens(pool, now_s) if pipeline else 0.0
    share = attained / most.attained_tokens if most.attained_tokens else 0.0
    waited = (now_s - state.arrived_s) / most.waited_s if most.waited_s else 0.0
    return -(0.8 * (1.0 - share) + 0.2 * waited)


@dataclass(frozen=True, slots=True)
class _Most:
    attained_tokens: float
    waited_s: float


def _most(pool: str, view: View) -> _Most:
    """What the scores of one look are measured against, among the programs with a call that waits."""
    waiting = [s for s in view.pipelines.calls() if s.status is CallStatus.WAITING and s.call.pool == pool]
    pipelines = [view.pipelines.get(state.call.run_id) for state in waiting]
    return _Most(
        attained_tokens=max((p.attained_tokens(pool, view.now_s) for p in pipelines if p is not None), default=0.0),
        waited_s=max((view.now_s - state.arrived_s for state in waiting), default=0.0),
    )


def _queue(worker: WorkerState) -> int:
    """Calls that the engine has not begun, by its report; by our own count all that prefill but the one it is at."""
    if worker.has_reported:
        return worker.reported_waiting
    return max(sum(flight.prefilling for flight in worker.flights.values()) - 1, 0)


def _kv_use(worker: WorkerState) -> float:
    """Share of the KV memory in use, by the engine's report or by our own count; the latter may exceed 1."""
    if worker.has_reported:
        return worker.reported_kv_used_ratio
    return worker.committed_tokens / worker.kv_tokens if worker.kv_tokens else 0.0

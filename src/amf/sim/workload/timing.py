"""Seconds of planned work by the cost model: a pipeline alone, and the rate at which a fleet saturates."""

from collections.abc import Mapping, Sequence

from amf.core.cost import decode_s, decode_share_s, full_batch, prefill_s
from amf.core.types import CallKind, Worker, WorkerProfile
from amf.sim.plan import CallPlan, PipelinePlan, PromptPlan, Workload
from amf.sim.workload.blocks import SHARED_BLOCKS, owned_runs
from amf.sim.workload.ideal import PrefixTree

USUAL_PROMPT_TOKENS, USUAL_OUTPUT_TOKENS = 8_192, 512


def standalone_s(pipeline: PipelinePlan, profiles: Mapping[str, WorkerProfile]) -> float:
    """Seconds of the pipeline's critical path, gaps included, alone on workers whose caches never evict: each call
    prefills only what is neither static text nor in an earlier prompt of the pipeline on that pool, then decodes in a
    batch of one. `profiles` by pool. The clairvoyant base of `slo_stretch` and of the report's stretch."""
    end_s: list[float] = []
    for call, own_s in zip(pipeline.calls, calls_alone_s(pipeline, profiles), strict=True):
        end_s.append(max((end_s[parent] for parent in call.parents), default=0.0) + call.gap_s + own_s)
    return max(end_s, default=0.0)


def calls_alone_s(pipeline: PipelinePlan, profiles: Mapping[str, WorkerProfile]) -> list[float]:
    """Seconds of each of its calls under the same conditions, in plan order, gaps left out."""
    alone_s: list[float] = []
    trees: dict[str, PrefixTree] = {}
    for call in pipeline.calls:
        warm = _static_blocks(call.prompt)
        if call.kind is CallKind.GENERATE:
            warm = max(warm, trees.setdefault(call.pool, PrefixTree()).add(call.prompt))
        alone_s.append(_call_s(profiles[call.pool], call, warm * call.prompt.block_tokens))
    return alone_s


def fastest_profiles(fleet: Sequence[Worker]) -> dict[str, WorkerProfile]:
    """By pool, the profile of the worker that is quickest with a usual call."""
    fastest: dict[str, WorkerProfile] = {}
    for worker in fleet:
        known = fastest.get(worker.pool)
        if known is None or _usual_s(worker.profile) < _usual_s(known):
            fastest[worker.pool] = worker.profile
    return fastest


def saturation_rate_per_s(workload: Workload, fleet: Sequence[Worker], cached: Mapping[tuple[str, int], int]) -> float:
    """Pipelines per second at which the busiest pool of the fleet is fully used, with an infinite cache (`cached` tokens
    by pipeline and call) and full decode batches; unequal workers share the work so that they end together. An estimate
    by the cost model: memory is not modelled."""
    calls: dict[str, list[tuple[CallPlan, int]]] = {}
    for pipeline in workload.pipelines:
        for call in pipeline.calls:
            calls.setdefault(call.pool, []).append((call, cached[pipeline.pipeline_id, call.index]))
    busy_s = [_pool_s([worker for worker in fleet if worker.pool == pool], calls[pool]) for pool in sorted(calls)]
    return len(workload.pipelines) / max(busy_s)


def _usual_s(profile: WorkerProfile) -> float:
    return prefill_s(profile, USUAL_PROMPT_TOKENS, 0) + decode_s(profile, USUAL_OUTPUT_TOKENS, 1, USUAL_PROMPT_TOKENS)


def _pool_s(workers: Sequence[Worker], calls: Sequence[tuple[CallPlan, int]]) -> float:
    """Seconds in which these workers together do these calls."""
    rate, done = 0.0, dict[tuple[WorkerProfile, int, int], float]()
    for worker in workers:
        kind = (worker.profile, worker.kv_tokens, worker.max_running)
        if kind not in done:
            done[kind] = sum(_capacity_s(worker, call, warm) for call, warm in calls)
        rate += 1 / done[kind]
    return 1 / rate


def _static_blocks(prompt: PromptPlan) -> int:
    """Leading blocks of text that is the same in all pipelines of the graph."""
    blocks = 0
    for _, first, count in owned_runs(prompt):
        if first >= SHARED_BLOCKS:
            break
        blocks += count
    return blocks


def _call_s(profile: WorkerProfile, call: CallPlan, warm_tokens: int) -> float:
    total = call.prompt.total_tokens
    if call.kind is not CallKind.GENERATE:
        return prefill_s(profile, total, 0)
    warm = min(warm_tokens, total - 1)
    return prefill_s(profile, total - warm, warm) + decode_s(profile, call.output_tokens - 1, 1, total + 1)


def _capacity_s(worker: Worker, call: CallPlan, warm_tokens: int) -> float:
    """Worker seconds the call costs a busy worker: its prefill and its share of a full batch's decoding."""
    total = call.prompt.total_tokens
    prefill = prefill_s(worker.profile, total - warm_tokens, warm_tokens)
    batch = full_batch(worker.max_running, worker.kv_tokens, total + call.output_tokens)
    return prefill + decode_share_s(worker.profile, total, call.output_tokens, batch)

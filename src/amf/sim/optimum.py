"""What no policy can beat: physical bounds on a workload and a fleet, each with its assumptions (docs/bounds.md).

All of them hold for runs of `amf.sim.loop` without faults that speed a worker up, in which every call fits its worker;
those on the load also need every pipeline to complete. They take the fleet's profiles as true, let any worker have any
prefix that any call could have left, and know the future. They are relaxations: what lies between a run and its bound
need not be winnable.

A pipeline that speculates may do without calls that its plan has, so it has no critical path here; where there is one, nothing
is said of the load either.

- `critical_path_s`: pipeline by pipeline, whatever the others do (optimum_demand.py).
- `srpt_mean_s`: on the mean, from work (optimum_load.py); never below the mean critical path.
- `edf_p99_s`: on the 99th percentile, likewise; never below that of the critical paths.
- `belady_hit_ratio`: above, for one order of calls (optimum_belady.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from amf.core.types import CallKind, Worker
from amf.sim.optimum_belady import belady_hit_blocks
from amf.sim.optimum_demand import Demand, Envelope, Work, demands, envelopes
from amf.sim.optimum_load import closed_loop_flow_s, closed_loop_p99_s, earliest_p99_s, srpt_flow_s
from amf.sim.plan import PromptPlan, Workload

_COMPUTE_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
_NOTHING = Work(0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Seconds. `critical_path_s` by pipeline. The mean and the percentile are over all pipelines of the workload; None: some of
    them speculate."""

    critical_path_s: Mapping[str, float]
    srpt_mean_s: float | None
    edf_p99_s: float | None
    belady_hit_ratio: float | None = None


def bounds_of(workload: Workload, fleet: Sequence[Worker]) -> Bounds:
    """The bounds that hold for every policy. Raises KeyError for a call to a pool without workers.

    An open loop measures from each arrival, a closed loop from each start. Where pipelines have arrivals *and* wait for
    a place, work bounds nothing and only critical paths are left."""
    if not workload.pipelines:
        return Bounds(critical_path_s={}, srpt_mean_s=0.0, edf_p99_s=0.0)
    pools = envelopes(fleet)
    needs = demands(workload, pools)
    if any(pipeline.speculates for pipeline in workload.pipelines):
        both = zip(workload.pipelines, needs, strict=True)
        plain = {each.pipeline_id: need.critical_path_s for each, need in both if not each.speculates}
        return Bounds(critical_path_s=plain, srpt_mean_s=None, edf_p99_s=None)
    alone_s = [need.critical_path_s for need in needs]
    count = len(needs)
    mean_s, p99_s = sum(alone_s) / count, float(np.percentile(alone_s, 99))
    closed = workload.concurrency is not None and count > workload.concurrency
    if not closed or all(pipeline.arrival_s is None for pipeline in workload.pipelines):
        for pool, works_s in _pool_works(needs, pools):
            pool_mean_s, pool_p99_s = _load_bounds(workload, needs, pool, works_s)
            mean_s, p99_s = max(mean_s, pool_mean_s), max(p99_s, pool_p99_s)
    paths_s = {pipeline.pipeline_id: each for pipeline, each in zip(workload.pipelines, alone_s, strict=True)}
    return Bounds(critical_path_s=paths_s, srpt_mean_s=mean_s, edf_p99_s=p99_s)


def belady_hit_ratio(workload: Workload, fleet: Sequence[Worker], order: Sequence[tuple[str, int]]) -> float | None:
    """The best share of prompt tokens from cache when the calls (pipeline, index) are served in `order`, each pool's
    memory, with what its workers have in DRAM, taken as one cache. None for no calls. Memory for outputs is not charged,
    and a policy that serves another order may hit more. Raises ValueError if a prompt exceeds its pool's memory."""
    calls = {(pipeline.pipeline_id, call.index): call for pipeline in workload.pipelines for call in pipeline.calls}
    served = [calls[each] for each in order]
    prompts: dict[str, list[PromptPlan]] = {}
    for call in served:
        if call.kind is CallKind.GENERATE:
            prompts.setdefault(call.pool, []).append(call.prompt)
    hit_tokens = 0
    for pool, asked in prompts.items():
        sizes = {prompt.block_tokens for prompt in asked}
        if len(sizes) > 1:
            raise ValueError(f"a cache has one block size, the calls have {sorted(sizes)}")
        (size,) = sizes
        capacity = sum(worker.kv_tokens // size + worker.dram_tokens // size for worker in fleet if worker.pool == pool)
        hit_tokens += size * sum(belady_hit_blocks(asked, capacity))
    prompt_tokens = sum(call.prompt.total_tokens for call in served)
    return hit_tokens / prompt_tokens if prompt_tokens else None


def _pool_works(needs: Sequence[Demand], pools: Mapping[str, Envelope]) -> Iterator[tuple[str, list[float]]]:
    """Seconds that each pipeline takes of each pool as a whole, under several valid ways to charge them.

    An iteration lasts at least its arithmetic and at least its reading, hence at least any mixture of the two; and the
    weights it reads are shared by at most `max_running` sequences, and by at most as many as memory holds. Each choice
    is a bound of its own; which is the tightest depends on the workload."""
    for pool, envelope in pools.items():
        profile, works = envelope.profile, [need.work.get(pool, _NOTHING) for need in needs]
        compute_s = np.array([work.compute_s for work in works])
        read_s = np.array([work.read_s for work in works])
        by_count = np.array([work.decode_tokens for work in works]) / envelope.max_running
        by_memory = np.array([work.held_tokens for work in works]) / envelope.kv_tokens
        weight_bytes = profile.dense_weight_bytes + profile.expert_share * profile.expert_weight_bytes
        weights_s = weight_bytes / profile.bandwidth_bytes_per_s
        for share in _COMPUTE_SHARES:
            iteration_s = (1 - share) * weights_s + profile.iteration_overhead_s
            for iterations in (by_count, by_memory):
                seconds = share * compute_s + (1 - share) * read_s + iterations * iteration_s
                yield pool, (seconds / envelope.workers).tolist()


def _load_bounds(
    workload: Workload, needs: Sequence[Demand], pool: str, works_s: Sequence[float]
) -> tuple[float, float]:
    """Mean and 99th percentile that `works_s` alone enforce. In an open loop, a pipeline's work in the pool begins no
    sooner than its first call there could, and pipelines without any count with their critical paths."""
    count = len(works_s)
    if workload.concurrency is not None and count > workload.concurrency:
        flow_s = closed_loop_flow_s(works_s, workload.concurrency)
        return flow_s / count, closed_loop_p99_s(works_s, workload.concurrency)
    arrivals_s = [pipeline.arrival_s or 0.0 for pipeline in workload.pipelines]
    busy = [i for i in range(count) if works_s[i] > 0]
    heads_s = {i: needs[i].work[pool].head_s for i in busy}
    flow_s = srpt_flow_s([arrivals_s[i] + heads_s[i] for i in busy], [works_s[i] for i in busy])
    flow_s += sum(heads_s.values()) + sum(needs[i].critical_path_s for i in range(count) if i not in heads_s)
    alone_s = [need.critical_path_s for need in needs]
    return flow_s / count, earliest_p99_s(arrivals_s, works_s, alone_s)

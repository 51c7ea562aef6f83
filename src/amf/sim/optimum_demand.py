"""The least that each pipeline asks of the fleet: seconds along its critical path, and work in each pool.

A call can be spared no more than the longest prefix that some call which need not come after it also has: a call of
another pipeline, or one of its own that is not a descendant. Its time from due to end is then at least one iteration
over the rest of its prompt, alone, and one decode iteration, alone, for each further output token: an iteration only
gets longer by what else is in it, and several chunks never cost less than one.

Work counts per pipeline and pool what no batching spares. Each block that no other pipeline has is computed once;
each prompt's tail is; keys and values are read in every iteration. The weights and the constant overhead of an
iteration are shared by the sequences that decode in it: at most `max_running`, and at most as many as have room for
the part of their prompts that no concurrent call can share.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from amf.core.cost import decode_iteration_s, iteration_s, prefill_s
from amf.core.types import CallKind, Worker, WorkerProfile
from amf.sim.optimum_tree import Node, paths
from amf.sim.plan import CallPlan, PipelinePlan, Workload
from amf.sim.worker_decode import QuietRun


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A pool as one kind of worker, at least as good as each of its workers in every number."""

    workers: int
    profile: WorkerProfile
    kv_tokens: int
    max_running: int


@dataclass(slots=True)
class Work:
    """One pipeline in one pool: seconds of arithmetic, seconds of reading KV, decode tokens, and the private prompt
    tokens held for each of them. `head_s`: after the pipeline's start, nothing of it can begin before."""

    head_s: float
    compute_s: float = 0.0
    read_s: float = 0.0
    decode_tokens: int = 0
    held_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Demand:
    critical_path_s: float
    work: Mapping[str, Work] = field(default_factory=dict)


def envelopes(fleet: Sequence[Worker]) -> dict[str, Envelope]:
    """By pool."""
    pools: dict[str, list[Worker]] = {}
    for worker in fleet:
        pools.setdefault(worker.pool, []).append(worker)
    return {
        pool: Envelope(
            workers=len(workers),
            profile=_best([worker.profile for worker in workers]),
            kv_tokens=max(worker.kv_tokens for worker in workers),
            max_running=max(worker.max_running for worker in workers),
        )
        for pool, workers in pools.items()
    }


def demands(workload: Workload, pools: Mapping[str, Envelope]) -> list[Demand]:
    """Of each pipeline, in the workload's order. Raises KeyError for a call to a pool without workers."""
    found = _paths_by_call(workload)
    return [_demand(pipeline, pools, found) for pipeline in workload.pipelines]


def _best(profiles: Sequence[WorkerProfile]) -> WorkerProfile:
    fields = WorkerProfile.__dataclass_fields__
    rates = ("flops_per_s", "bandwidth_bytes_per_s")
    best = {
        name: (max if name in rates else min)(getattr(profile, name) for profile in profiles) for name in sorted(fields)
    }
    return replace(profiles[0], **best)


def _paths_by_call(workload: Workload) -> dict[tuple[str, int], list[Node]]:
    """Paths of all calls that can share, with each node's users noted."""
    by_pool: dict[str, list[tuple[str, CallPlan]]] = {}
    for pipeline in workload.pipelines:
        for call in pipeline.calls:
            if call.kind is CallKind.GENERATE:
                by_pool.setdefault(call.pool, []).append((pipeline.pipeline_id, call))
    found: dict[tuple[str, int], list[Node]] = {}
    for users in by_pool.values():
        for (pipeline_id, call), path in zip(users, paths([call.prompt for _, call in users]), strict=True):
            found[pipeline_id, call.index] = path
            bit = 1 << call.index
            for node in path:
                node.calls |= bit
                if node.owner is None:
                    node.owner = pipeline_id
                elif node.owner != pipeline_id:
                    node.shared = True
    return found


def _demand(
    pipeline: PipelinePlan, pools: Mapping[str, Envelope], found: Mapping[tuple[str, int], list[Node]]
) -> Demand:
    ancestors, descendants = _kin(pipeline)
    everyone = (1 << len(pipeline.calls)) - 1
    counted: set[Node] = set()
    work: dict[str, Work] = {}
    end_s: list[float] = []
    for call in pipeline.calls:
        pool, path = pools[call.pool], found.get((pipeline.pipeline_id, call.index), [])
        start_s = max((end_s[parent] for parent in call.parents), default=0.0) + call.gap_s
        donors = everyone & ~descendants[call.index] & ~(1 << call.index)
        end_s.append(start_s + _call_s(pool.profile, call, _reach(path, donors)))
        item = work.setdefault(call.pool, Work(start_s))
        item.head_s = min(item.head_s, start_s)
        item.compute_s += _compute_s(pool.profile, call, path, counted)
        counted.update(path)
        rivals = donors & ~ancestors[call.index]
        _add_decode(item, pool.profile, call, call.prompt.block_tokens * _reach(path, rivals))
    return Demand(max(end_s, default=0.0), work)


def _kin(pipeline: PipelinePlan) -> tuple[list[int], list[int]]:
    """Ancestors and descendants of each call, as bits. Parents come before their children in a plan."""
    ancestors = [0] * len(pipeline.calls)
    descendants = [0] * len(pipeline.calls)
    for call in pipeline.calls:
        for parent in call.parents:
            ancestors[call.index] |= ancestors[parent] | 1 << parent
    for call in reversed(pipeline.calls):
        for parent in call.parents:
            descendants[parent] |= descendants[call.index] | 1 << call.index
    return ancestors, descendants


def _reach(path: Sequence[Node], calls: int) -> int:
    """Leading blocks of `path` that another pipeline or one of `calls` also has."""
    if not calls:
        shared = 0
        for node in path:
            if not node.shared:
                break
            shared = node.end
        return shared
    return next((node.end for node in reversed(path) if node.shared or node.calls & calls), 0)


def _call_s(profile: WorkerProfile, call: CallPlan, warm_blocks: int) -> float:
    total, size = call.prompt.total_tokens, call.prompt.block_tokens
    cached = min(warm_blocks, (total - 1) // size) * size
    seconds = iteration_s(profile, [(total - cached, cached)], 0, 0)
    further = call.output_tokens - 1
    if further < 1:
        return seconds
    return seconds + QuietRun(0.0, further, lambda i: decode_iteration_s(profile, 1, total + 1 + i)).end_s


def _compute_s(profile: WorkerProfile, call: CallPlan, path: Sequence[Node], counted: set[Node]) -> float:
    """Arithmetic of the prompt's tail and of the nodes that nobody else has and no earlier call has paid for."""
    size, total = call.prompt.block_tokens, call.prompt.total_tokens
    end = path[-1].end * size if path else 0
    seconds = _arithmetic_s(profile, total - end, end)
    for node in reversed(path):
        if node.shared or node in counted:
            break
        seconds += _arithmetic_s(profile, node.count * size, node.start * size)
    return seconds


def _arithmetic_s(profile: WorkerProfile, new_tokens: int, cached_tokens: int) -> float:
    return prefill_s(profile, new_tokens, cached_tokens) - profile.iteration_overhead_s if new_tokens else 0.0


def _add_decode(item: Work, profile: WorkerProfile, call: CallPlan, common_tokens: int) -> None:
    total, further = call.prompt.total_tokens, max(0, call.output_tokens - 1)
    attended = further * (total + 1) + further * (further - 1) / 2
    windowed = further * min(total + 1, profile.window_tokens)
    flops = (
        profile.flops_per_token * further
        + profile.attention_flops * attended
        + profile.window_attention_flops * windowed
    )
    item.compute_s += flops / profile.flops_per_s
    read_bytes = profile.kv_bytes_per_token * (attended + total)
    read_bytes += profile.window_kv_bytes_per_token * (windowed + min(total, profile.window_tokens))
    item.read_s += read_bytes / profile.bandwidth_bytes_per_s
    item.decode_tokens += further
    item.held_tokens += further * (total - common_tokens)

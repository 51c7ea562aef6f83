"""What the demo runs: coding sessions and the essay's seven-hop pipeline, side by side, the same for every policy.

Two cores have to play a fleet of GPUs, a gateway and many agents in about two minutes. So sessions end after a few calls,
long gaps are capped, and instead of many sessions on full memories there are few on small ones: the KV memory of the
sessions' pool is sized so that some 2.5 times more session context is live than fits, as on a busy real fleet. Context
lengths, outputs and the workers' speed are as they are. The output says all this.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from statistics import fmean

from amf.core.types import WorkerProfile
from amf.sim.plan import PipelinePlan, Workload
from amf.sim.scenario import PoolSpec, WorkloadSpec, pool_worker
from amf.sim.workload import build, built_in, standalone_s

GRAPH = "coding-7hop"
SLO_STRETCH = 2.0
PRESSURE = 2.5  # live session context over the sessions pool's KV memory
CALLS_PER_SESSION = 10
GAP_CAP_S = 60.0
LIVE_SESSIONS = 18
LIVE_GRAPHS = 4
_LARGEST_CONTEXT_TOKENS = 100_000
_SPARE = 3  # sessions drawn for each one kept
_KV_STEP_TOKENS = 4_096
_MODELLED_S_PER_SESSION = 62.0  # that the slowest policy needs, with LIVE_SESSIONS at a time
_MODELLED_S_PER_GRAPH = 80.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoWork:
    """`sessions` and `graphs` run at the same time. `pools`: the fleet, KV memory sized. `notes`: what was changed."""

    sessions: Workload
    graphs: Workload
    pools: tuple[PoolSpec, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSize:
    """How much work: pipelines of each kind and how many are live. From the seconds a policy has."""

    sessions: int
    graphs: int
    live_sessions: int = LIVE_SESSIONS
    live_graphs: int = LIVE_GRAPHS

    @classmethod
    def fitting(cls, modelled_s: float) -> "DemoSize":
        """What the slowest policy can finish in these seconds; at least one of each."""
        sessions = max(1, round(modelled_s / _MODELLED_S_PER_SESSION))
        graphs = max(1, round(modelled_s / _MODELLED_S_PER_GRAPH))
        return cls(
            sessions=sessions,
            graphs=graphs,
            live_sessions=min(sessions, LIVE_SESSIONS),
            live_graphs=min(graphs, LIVE_GRAPHS),
        )


def demo_work(size: DemoSize, seed: int, trace: Path | None) -> DemoWork:
    """Raises ScenarioError if the recording cannot be read."""
    fleet = built_in(GRAPH).fleet
    sessions = _sessions(size, fleet[0], seed, trace)
    spec = WorkloadSpec(
        kind="graph", graph=GRAPH, pipelines=size.graphs, concurrency=size.live_graphs, slo_stretch=SLO_STRETCH
    )
    graphs = build(spec, fleet, seed)
    pool, *others = fleet
    sized = replace(pool, kv_tokens=_short_of_memory(sessions, size.live_sessions, pool.workers))
    return DemoWork(
        sessions=sessions,
        graphs=graphs,
        pools=(sized, *others),
        notes=(
            *sessions.notes,
            *graphs.notes,
            f"cut to fit: the first {CALLS_PER_SESSION} calls of sessions below {_LARGEST_CONTEXT_TOKENS:,} tokens, gaps of "
            f"at most {GAP_CAP_S:g} s; {size.live_sessions} sessions live on {pool.workers} workers of {pool.model} with "
            f"{sized.kv_tokens:,} KV tokens each; deadline = {SLO_STRETCH:g} x the time alone",
        ),
    )


def _sessions(size: DemoSize, pool: PoolSpec, seed: int, trace: Path | None) -> Workload:
    """The first sessions whose contexts leave a worker room for others."""
    spec = WorkloadSpec(
        kind="claude-code" if trace else "coding-sessions",
        path=trace,
        pipelines=size.sessions * _SPARE,
        concurrency=size.live_sessions,
        slo_stretch=SLO_STRETCH,
        think_cap_s=GAP_CAP_S,
    )
    drawn = build(spec, [pool], seed)
    profiles = {pool.model: pool_worker(pool, 0).profile}
    plans = [_cut(plan, profiles) for plan in drawn.pipelines]
    fitting = tuple(plan for plan in plans if _largest_tokens(plan) <= _LARGEST_CONTEXT_TOKENS)
    return replace(drawn, pipelines=fitting[: size.sessions])


def _cut(plan: PipelinePlan, profiles: Mapping[str, WorkerProfile]) -> PipelinePlan:
    """The first calls with capped gaps; its time alone and its deadline follow."""
    calls = tuple(replace(call, gap_s=min(call.gap_s, GAP_CAP_S)) for call in plan.calls[:CALLS_PER_SESSION])
    shorter = replace(plan, calls=calls)
    alone_s = standalone_s(shorter, profiles)
    return replace(shorter, standalone_s=alone_s, slo_s=SLO_STRETCH * alone_s)


def _short_of_memory(sessions: Workload, live: int, workers: int) -> int:
    """KV tokens a worker: live context / PRESSURE, though with room for the largest call."""
    calls = [call for plan in sessions.pipelines for call in plan.calls]
    context_tokens = live * fmean(call.prompt.total_tokens for call in calls)
    largest = max(call.prompt.total_tokens + call.output_tokens for call in calls)
    wanted = max(context_tokens / PRESSURE / workers, 1.25 * largest)
    return ceil(wanted / _KV_STEP_TOKENS) * _KV_STEP_TOKENS


def _largest_tokens(plan: PipelinePlan) -> int:
    return max(call.prompt.total_tokens for call in plan.calls)

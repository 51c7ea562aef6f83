"""No simulated run is below its bounds: random small workloads, fleets and policies, and the generators' workloads."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amf.core.config import FabricConfig
from amf.core.fabric import Fabric
from amf.core.policy.bundles import policies_named
from amf.core.types import CallKind, Worker
from amf.sim.loop import Simulation
from amf.sim.optimum import belady_hit_ratio, bounds_of
from amf.sim.plan import CallPlan, PipelinePlan, PromptPlan, Workload
from amf.sim.report import RunRecords, served_order
from amf.sim.scenario import pool_worker, scenario_from_dict
from amf.sim.workload import SHARED_BLOCKS, build, fleet_of
from kit import PROFILE

POLICIES = ("round-robin", "least-loaded", "session-affinity", "kv-cost", "fabric")
BLOCK_TOKENS = 16
OWN = SHARED_BLOCKS  # block ids from here on belong to the prompt's own namespace
# Weights small against KV, so that each of the ways to charge an iteration is the tightest somewhere.
LIGHT = replace(PROFILE, dense_weight_bytes=PROFILE.dense_weight_bytes / 50, iteration_overhead_s=0.0005)
WINDOWED = replace(
    PROFILE,
    window_attention_flops=PROFILE.attention_flops,
    window_tokens=200,
    window_kv_bytes_per_token=60 * PROFILE.kv_bytes_per_token,
)
SPARSE = replace(PROFILE, dense_weight_bytes=1e9, expert_weight_bytes=60e9, expert_share=0.05)
SLACK = 1 + 1e-9


def check(workload: Workload, fleet: Sequence[Worker], records: RunRecords) -> None:
    assert {each.status for each in records.pipelines} == {"completed"}
    bounds = bounds_of(workload, fleet)
    taken_s = {each.pipeline: each.end_s - each.start_s for each in records.pipelines}
    for pipeline_id, seconds in taken_s.items():
        assert bounds.critical_path_s[pipeline_id] <= seconds * SLACK + 1e-9, pipeline_id
    mean_s, p99_s = np.mean(list(taken_s.values())), np.percentile(list(taken_s.values()), 99)
    assert bounds.srpt_mean_s <= mean_s * SLACK + 1e-9
    assert bounds.edf_p99_s <= p99_s * SLACK + 1e-9
    prompt_tokens = sum(call.prompt_tokens for call in records.calls)
    cached_tokens = sum(call.cached_tokens or 0 for call in records.calls)
    best = belady_hit_ratio(workload, fleet, served_order(records))
    assert best is not None and cached_tokens / prompt_tokens <= best * SLACK


def play(policy: str, workload: Workload, fleet: Sequence[Worker]) -> None:
    records = Simulation(Fabric(FabricConfig(), policies_named(policy)), fleet, workload).run()
    check(workload, fleet, records)


@st.composite
def prompts(draw: st.DrawFn, namespace: str) -> PromptPlan:
    static, own = draw(st.integers(0, 30)), draw(st.integers(0, 200))
    fork = draw(st.integers(0, 2))
    runs = [(0, static), (OWN, own), (OWN + 1_000 + 100 * fork, draw(st.integers(0, 60)))]
    tail = draw(st.integers(0, BLOCK_TOKENS - 1))
    kept = tuple(run for run in runs if run[1])
    return PromptPlan(
        namespace=f"g/{namespace}", block_tokens=BLOCK_TOKENS, runs=kept, tail_tokens=tail if kept else max(1, tail)
    )


@st.composite
def pipelines(draw: st.DrawFn, name: str) -> PipelinePlan:
    calls: list[CallPlan] = []
    for index in range(draw(st.integers(1, 5))):
        parents = draw(st.sets(st.integers(0, index - 1), max_size=2)) if index else set()
        calls.append(
            CallPlan(
                index=index,
                hop=f"h{index}",
                pool="m",
                prompt=draw(prompts(name)),
                output_tokens=draw(st.sampled_from([1, 2, 40, 300])),
                parents=tuple(sorted(parents)),
                gap_s=draw(st.sampled_from([0.0, 0.0, 0.5, 20.0])),
                kind=draw(st.sampled_from([CallKind.GENERATE] * 9 + [CallKind.EMBED])),
            )
        )
    return PipelinePlan(pipeline_id=f"g/{name}", graph="g", calls=tuple(calls), declared=draw(st.booleans()))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Workload, list[Worker]]:
    plans = [draw(pipelines(str(number))) for number in range(draw(st.integers(1, 12)))]
    concurrency = draw(st.sampled_from([None, 2, 5, 50]))
    if concurrency is None:
        arrivals = draw(st.lists(st.floats(0, 20), min_size=len(plans), max_size=len(plans)))
        plans = [replace(plan, arrival_s=at_s) for plan, at_s in zip(plans, sorted(arrivals), strict=True)]
    profiles = draw(st.lists(st.sampled_from([PROFILE, LIGHT, WINDOWED, SPARSE]), min_size=1, max_size=3))
    workers = [
        Worker(
            name=f"m-{number}",
            pool="m",
            profile=profile,
            kv_tokens=draw(st.sampled_from([6_000, 12_000, 200_000])),
            block_tokens=BLOCK_TOKENS,
            max_running=draw(st.sampled_from([1, 3, 256])),
            has_kv_events=True,
        )
        for number, profile in enumerate(profiles)
    ]
    return Workload(name="w", pipelines=tuple(plans), concurrency=concurrency), workers


@given(cases(), st.sampled_from(POLICIES))
@settings(max_examples=120, deadline=None)
def test_no_run_is_below_its_bounds(case: tuple[Workload, list[Worker]], policy: str):
    play(policy, *case)


@pytest.mark.parametrize("output", [1, 120, 600])
@pytest.mark.parametrize("places", [None, 10], ids=["open", "closed"])
@pytest.mark.parametrize("workers", [1, 3])
def test_no_overloaded_pool_is_faster_than_its_load(workers: int, places: int | None, output: int):
    """Work is what binds here: many equal pipelines at once, prefill-bound or decode-bound. `places` for each worker."""
    fleet = [
        Worker(name=f"m-{i}", pool="m", profile=PROFILE, kv_tokens=20_000, block_tokens=BLOCK_TOKENS)
        for i in range(workers)
    ]
    plans = tuple(
        PipelinePlan(
            pipeline_id=f"g/{number}",
            graph="g",
            calls=(
                CallPlan(
                    index=0,
                    hop="h",
                    pool="m",
                    prompt=PromptPlan(namespace=f"g/{number}", block_tokens=BLOCK_TOKENS, runs=((OWN, 300),)),
                    output_tokens=output,
                ),
            ),
        )
        for number in range(16 * workers)
    )
    concurrency = places and places * workers
    workload = Workload(name="w", pipelines=plans, concurrency=concurrency)
    bounds = bounds_of(workload, fleet)
    assert bounds.srpt_mean_s > 1.2 * max(bounds.critical_path_s.values())
    play("least-loaded", workload, fleet)


GENERATED = [
    ({"kind": "graph", "graph": "coding-7hop", "pipelines": 10, "concurrency": 5, "scale_tokens": 0.1}, []),
    ({"kind": "graph", "graph": "tree-search", "pipelines": 12, "load": 2.0, "scale_tokens": 0.2}, []),
    ({"kind": "graph", "graph": "map-reduce", "pipelines": 10, "load": 1.5, "scale_tokens": 0.2}, []),
    (
        {"kind": "coding-sessions", "pipelines": 10, "concurrency": 5, "scale_tokens": 0.05, "think_cap_s": 20},
        [{"model": "llama-3.1-8b", "workers": 2, "kv_tokens": 30_000}],
    ),
]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("spec", "pools"), GENERATED, ids=["coding-7hop", "tree-search", "map-reduce", "sessions"])
def test_no_generated_workload_runs_below_its_bounds(policy: str, spec: dict, pools: list[dict]):
    scenario = scenario_from_dict({"workload": {**spec, "seed": 11}, "pool": pools}, "test.toml")
    specs = fleet_of(scenario)
    fleet = [replace(pool_worker(pool, i), block_tokens=64) for pool in specs for i in range(pool.workers)]
    play(policy, build(scenario.workload, specs), fleet)

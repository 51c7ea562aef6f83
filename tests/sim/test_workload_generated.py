"""Generated workloads: the statistics they promise, graphs as declared, shared text, arrivals, deadlines."""

from dataclasses import replace
from math import sqrt
from random import Random

import numpy as np
import pytest

from amf.core.cost import decode_s, prefill_s
from amf.core.types import CallKind
from amf.sim.plan import CallPlan, PipelinePlan, PromptPlan
from amf.sim.scenario import PoolSpec, ScenarioError, WorkloadSpec, pool_worker
from amf.sim.workload import (
    GRAPHS,
    SHARED_BLOCKS,
    block_namespace,
    build,
    ideal_cached_by_call,
    ideal_cached_tokens,
    owned_runs,
    standalone_s,
)
from amf.sim.workload.arrivals import arrival_times
from amf.sim.workload.draws import LogNormal, LogUniform, Quantiles

POOL = (PoolSpec(model="llama-3.3-70b", workers=2, kv_tokens=500_000),)


def graph_spec(name: str, **changes) -> WorkloadSpec:
    return WorkloadSpec(
        **({"kind": "graph", "graph": name, "pipelines": 60, "concurrency": 8, "slo_stretch": 3.0} | changes)
    )


def sessions(**changes) -> WorkloadSpec:
    return WorkloadSpec(**({"kind": "coding-sessions", "pipelines": 200, "concurrency": 8, "slo_s": 60.0} | changes))


def all_calls(workload) -> list[CallPlan]:
    return [call for plan in workload.pipelines for call in plan.calls]


def test_sessions_resemble_the_recorded_ones():
    workload = build(sessions(pipelines=600), POOL)
    calls = all_calls(workload)
    inputs = [call.prompt.total_tokens for call in calls]
    gaps = [call.gap_s for call in calls if call.parents]
    assert np.median([len(plan.calls) for plan in workload.pipelines]) == pytest.approx(44, rel=0.2)
    assert np.median(inputs) == pytest.approx(99_144, rel=0.15)
    assert np.percentile(inputs, 10) == pytest.approx(41_420, rel=0.2)
    assert np.median([call.output_tokens for call in calls]) == pytest.approx(217, rel=0.1)
    assert np.percentile([call.output_tokens for call in calls], 90) == pytest.approx(878, rel=0.15)
    assert max(gaps) > 900 and np.percentile(gaps, 25) < 9 < np.percentile(gaps, 75)
    assert ideal_cached_tokens(workload) / sum(inputs) == pytest.approx(0.96, abs=0.015)
    assert any("SYNTHETIC" in note for note in workload.notes)


def test_sessions_share_only_the_static_prefix_and_scale():
    workload = build(sessions(pipelines=20), POOL)
    first = [plan.calls[0].prompt for plan in workload.pipelines]
    static = {owned_runs(prompt)[0] for prompt in first}
    assert static == {("shared:coding-sessions", 0, 235)}
    owners = [
        {space for call in plan.calls for space, _, _ in owned_runs(call.prompt)[1:]} for plan in workload.pipelines
    ]
    assert all(len(each) == 1 for each in owners) and len(set().union(*owners)) == 20
    small = build(sessions(pipelines=20, scale_tokens=0.1), POOL)
    ratio = sum(c.prompt.total_tokens for c in all_calls(small)) / sum(
        c.prompt.total_tokens for c in all_calls(workload)
    )
    assert 0.05 < ratio < 0.2


def test_think_gaps_are_capped():
    gaps = [call.gap_s for call in all_calls(build(sessions(think_cap_s=20.0), POOL))]
    assert sum(gap == 20.0 for gap in gaps) > len(gaps) * 0.05


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_draw_what_they_declare(name):
    """Every call is a declared hop on its pool; every parent relation is a declared edge or a loop."""
    template = GRAPHS[name]
    graph = template.call_graph()
    workload = build(graph_spec(name), template.fleet)
    edges = {(edge.source, edge.target) for edge in graph.edges}
    seen: set[str] = set()
    for plan in workload.pipelines:
        assert plan.declared and plan.graph == name
        for call in plan.calls:
            seen.add(call.hop)
            hop = graph.by_name[call.hop]
            assert (hop.pool, hop.kind.value) == (call.pool, call.kind.value)
            assert all(parent < call.index for parent in call.parents)
            assert {(plan.calls[parent].hop, call.hop) for parent in call.parents} <= edges
            assert bool(call.parents) == bool(graph.parents(call.hop))
            assert (call.output_tokens > 0) == (call.kind is CallKind.GENERATE)
    assert seen == set(graph.order)
    assert {pool.name for pool in template.fleet} == set(template.pools)


def test_coding_7hop_is_the_essays_shape():
    workload = build(graph_spec("coding-7hop", pipelines=400), GRAPHS["coding-7hop"].fleet)
    counts = [len(plan.calls) for plan in workload.pipelines]
    assert min(counts) == 7 and max(counts) == 16
    looped = sum(count > 7 for count in counts) / len(counts)
    assert looped == pytest.approx(0.35, abs=0.08)
    plan = workload.pipelines[0].calls
    assert [call.hop for call in plan[:7]][:6] == ["plan", "embed", "rerank", "code", "test", "review"]
    assert len({call.pool for call in plan}) == 4
    ideal = ideal_cached_by_call(workload)
    by_hop = {call.hop: (call, ideal[workload.pipelines[0].pipeline_id, call.index]) for call in plan[:6]}
    test, warm = by_hop["test"]
    assert warm / test.prompt.total_tokens > 0.8  # continues the coder's thread
    assert by_hop["embed"][1] == 0  # an encoder keeps no KV


@pytest.mark.parametrize("name", ["map-reduce", "rag-verify", "speculative-3", "dag-10-wide"])
def test_siblings_share_their_whole_context(name):
    workload = build(graph_spec(name, pipelines=5), GRAPHS[name].fleet)
    for plan in workload.pipelines:
        hops = {call.hop: call for call in plan.calls}
        left, right = (hops[hop] for hop in sorted(hops) if hop.endswith(("-1", "-2")))
        shared = 0
        for a, b in zip(owned_runs(left.prompt), owned_runs(right.prompt), strict=False):
            if a != b:
                shared += min(a[2], b[2]) if a[:2] == b[:2] else 0
                break
            shared += a[2]
        assert shared >= 0.5 * min(left.prompt.blocks, right.prompt.blocks) - 40


@pytest.mark.parametrize("spec", [graph_spec("tree-search"), sessions(pipelines=10)], ids=lambda spec: spec.kind)
def test_seeds_reproduce_and_differ(spec):
    pools = GRAPHS["tree-search"].fleet if spec.kind == "graph" else POOL
    assert build(spec, pools, seed=5) == build(spec, pools, seed=5)
    assert build(spec, pools, seed=5).pipelines != build(spec, pools, seed=6).pipelines
    longer = build(replace(spec, pipelines=spec.pipelines + 3), pools, seed=5)
    assert longer.pipelines[: spec.pipelines] == build(spec, pools, seed=5).pipelines


def test_shared_ids_belong_to_the_graph_and_others_to_the_pipeline():
    prompt = PromptPlan(namespace="g/7", block_tokens=64, runs=((SHARED_BLOCKS - 2, 5), (SHARED_BLOCKS + 3, 1)))
    assert block_namespace(prompt, SHARED_BLOCKS - 1) == "shared:g"
    assert block_namespace(prompt, SHARED_BLOCKS) == "g/7"
    assert owned_runs(prompt) == [("shared:g", SHARED_BLOCKS - 2, 2), ("g/7", SHARED_BLOCKS, 4)]


def test_pools_must_fit_the_workload():
    with pytest.raises(ScenarioError, match=r"qwen3-32b.*\[\[pool\]\]"):
        build(graph_spec("coding-7hop"), POOL)
    with pytest.raises(ScenarioError, match="scale_tokens"):
        build(sessions(), (PoolSpec(model="llama-3.3-70b", kv_tokens=20_000),))
    with pytest.raises(ScenarioError, match="'coding-7hop'"):
        build(graph_spec("coding-7hops"), POOL)


@pytest.mark.parametrize(("arrival", "low", "high"), [("poisson", 0.9, 1.1), ("gamma", 2.6, 3.4), ("bursty", 1.1, 2.0)])
def test_arrivals_have_their_rate_and_burstiness(arrival, low, high):
    times = arrival_times(arrival, 40_000, 2.0, 3.0, Random(1))
    gaps = np.diff(times)
    assert times == sorted(times) and len(times) == 40_000
    assert len(times) / times[-1] == pytest.approx(2.0, rel=0.05)
    assert low < np.std(gaps) / np.mean(gaps) < high


def test_bursts_are_three_times_and_lulls_half_the_rate():
    times = np.array(arrival_times("bursty", 50_000, 5.0, 1.0, Random(2))) % 50.0
    assert np.sum(times < 10) / np.sum(times >= 10) == pytest.approx(30 / 20, rel=0.05)
    with pytest.raises(ValueError, match="trace"):
        arrival_times("trace", 1, 1.0, 1.0, Random(0))


def test_load_is_a_share_of_the_saturation_rate():
    fleet = GRAPHS["chain-3"].fleet
    half, full = (build(graph_spec("chain-3", concurrency=None, load=load), fleet) for load in (0.5, 1.0))
    assert half.pipelines[-1].arrival_s == pytest.approx(2 * full.pipelines[-1].arrival_s)
    assert "load 1" in full.notes[-1]
    twice = tuple(replace(pool, workers=2 * pool.workers) for pool in fleet)
    assert build(graph_spec("chain-3", concurrency=None, load=0.5), twice).pipelines[-1].arrival_s == pytest.approx(
        full.pipelines[-1].arrival_s
    )


def test_standalone_time_is_the_critical_path_with_a_warm_cache():
    worker = pool_worker(POOL[0], 0)

    def call(index, runs, parents=(), gap_s=0.0, output_tokens=11):
        prompt = PromptPlan(namespace="g/0", block_tokens=64, runs=runs)
        return CallPlan(
            index=index,
            hop="h",
            pool=worker.pool,
            prompt=prompt,
            output_tokens=output_tokens,
            parents=parents,
            gap_s=gap_s,
        )

    base = SHARED_BLOCKS
    plan = PipelinePlan(
        pipeline_id="g/0",
        graph="g",
        calls=(
            call(0, ((0, 10), (base, 100))),
            call(1, ((0, 10), (base, 120)), parents=(0,), gap_s=3.0),
            call(2, ((0, 10), (base, 100)), parents=(0,), output_tokens=2),
            call(3, ((0, 10), (base, 120)), parents=(1, 2), output_tokens=1),
        ),
    )
    profile = worker.profile
    first = prefill_s(profile, 6400, 640) + decode_s(profile, 10, 1, 7041)
    second = prefill_s(profile, 1280, 7040) + decode_s(profile, 10, 1, 8321)
    joined = prefill_s(profile, 1, 8319)  # a prompt seen before still computes its last token
    assert standalone_s(plan, {worker.pool: profile}) == pytest.approx(first + 3.0 + second + joined)


def test_deadlines_are_a_stretch_or_a_constant():
    stretched = build(graph_spec("dag-4", slo_stretch=2.0), GRAPHS["dag-4"].fleet)
    assert all(plan.slo_s == pytest.approx(2 * plan.standalone_s) for plan in stretched.pipelines)
    fixed = build(graph_spec("dag-4", slo_stretch=None, slo_s=4.0), GRAPHS["dag-4"].fleet)
    assert {plan.slo_s for plan in fixed.pipelines} == {4.0}


def test_a_pair_of_stretches_is_drawn_between_for_each_pipeline_and_changes_nothing_else():
    fleet = GRAPHS["dag-4"].fleet
    plans = build(graph_spec("dag-4", pipelines=400, slo_stretch=(1.5, 8.0)), fleet).pipelines
    stretches = [plan.slo_s / plan.standalone_s for plan in plans]
    assert 1.5 <= min(stretches) < 1.6 and 7.5 < max(stretches) <= 8.0
    assert np.median(stretches) == pytest.approx(sqrt(1.5 * 8.0), rel=0.1), "uniform in the logarithm"
    doubled = build(graph_spec("dag-4", pipelines=400, slo_stretch=(3.0, 16.0)), fleet).pipelines
    assert [each.slo_s for each in doubled] == pytest.approx([2 * plan.slo_s for plan in plans])
    plain = build(graph_spec("dag-4", pipelines=400, slo_stretch=3.0), fleet).pipelines
    assert [replace(each, slo_s=None) for each in plain] == [replace(plan, slo_s=None) for plan in plans]
    fewer = build(graph_spec("dag-4", pipelines=10, slo_stretch=(1.5, 8.0)), fleet).pipelines
    assert [each.slo_s for each in fewer] == [plan.slo_s for plan in plans[:10]]
    other = build(graph_spec("dag-4", pipelines=10, slo_stretch=(1.5, 8.0)), fleet, seed=8).pipelines
    assert [each.slo_s / each.standalone_s for each in other] != stretches[:10]


def test_distributions_pass_through_their_numbers():
    rng = Random(3)
    quantiles = Quantiles.of([(0.1, 4), (0.5, 9), (0.9, 76), (0.99, 906)], low=1, high=5_000)
    drawn = [quantiles.draw(rng) for _ in range(40_000)]
    assert np.percentile(drawn, [10, 50, 90, 99]) == pytest.approx([4, 9, 76, 906], rel=0.12)
    assert min(drawn) >= 1 and max(drawn) <= 5_000
    assert np.median([LogNormal(100, 1.0).draw(rng, 2.0) for _ in range(9_000)]) == pytest.approx(200, rel=0.06)
    uniform = LogUniform(4_000, 110_000)
    assert np.median([uniform.draw(rng) for _ in range(9_000)]) == pytest.approx(uniform.median, rel=0.08)


DECLARED = """
name = "mine"
[hops]
draft = { pool = "qwen3-32b", output_tokens = 100 }
run = { kind = "tool", expected_s = 5.0, after = "draft" }
check = { output_tokens = 20, after = "run" }
fix = { pool = "qwen3-32b", after = [{ hop = "check", p = 0.3 }] }
"""
LOOP = '[[edges]]\nfrom = "check"\nto = "draft"\np = 0.5\nloop = 2\n'


def test_a_declared_graph_runs_as_declared(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(DECLARED + LOOP)
    pools = (*POOL, PoolSpec(model="qwen3-32b"))
    spec = graph_spec(str(path), pipelines=600)
    workload = build(spec, pools)
    assert workload.name == "mine" and workload.graphs[0].by_name["check"].pool == "llama-3.3-70b"
    checks = [sum(call.hop == "check" for call in plan.calls) for plan in workload.pipelines]
    assert np.bincount(checks)[1:] / 600 == pytest.approx([0.5, 0.25, 0.25], abs=0.06)
    fixed = [plan for plan in workload.pipelines if plan.calls[-1].hop == "fix"]
    assert len(fixed) / 600 == pytest.approx(0.3 / 0.5, abs=0.06)
    for plan in workload.pipelines:
        for call in plan.calls:
            parents = [plan.calls[parent].hop for parent in call.parents]
            assert parents == {"draft": ["check"] if call.index else [], "check": ["draft"], "fix": ["check"]}[call.hop]
            assert (call.gap_s > 0) == (call.hop == "check")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("g.toml", DECLARED.replace('"draft" }', '"nowhere" }'), "nowhere"),
        ("g.toml", 'name = "x"\n[hops]\nwait = { kind = "tool" }\n', "calls a model"),
        ("g.json", "{", r"g\.json"),
    ],
)
def test_graphs_that_make_no_sense_are_scenario_errors(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(ScenarioError, match=words):
        build(graph_spec(str(tmp_path / name)), POOL)
    with pytest.raises(ScenarioError, match="cannot be read"):
        build(graph_spec(str(tmp_path / "absent.toml")), POOL)


def test_only_graphs_are_declared():
    assert build(sessions(), POOL).graphs == ()
    assert build(graph_spec("dag-4"), GRAPHS["dag-4"].fleet).graphs[0].name == "dag-4"

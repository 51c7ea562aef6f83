"""Several workloads in one: drawn by share, told apart, in blocks of one length."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from amf.sim.plan import Workload
from amf.sim.scenario import PartSpec, PoolSpec, ScenarioError, WorkloadSpec, scenario_from_dict
from amf.sim.study import cases_of, play
from amf.sim.workload import build, ideal_cached_by_call
from amf.sim.workload.mix import MIX_BLOCK_TOKENS

POOLS = (
    PoolSpec(model="llama-3.3-70b", workers=2, kv_tokens=500_000),
    PoolSpec(model="qwen3-32b", kv_tokens=500_000),
    PoolSpec(model="llama-3.1-8b", kv_tokens=500_000),
)
SESSIONS = PartSpec(kind="coding-sessions", share=1.0)
GRAPH = PartSpec(kind="graph", graph="chain-3", share=3.0, slo_s=5.0)


def mixed(*parts: PartSpec, pools=POOLS, **changes) -> Workload:
    spec = {"kind": "mix", "mix": parts, "pipelines": 200, "concurrency": 8, "slo_stretch": 2.0, "scale_tokens": 0.2}
    return build(WorkloadSpec(**(spec | changes)), pools)


def kinds(workload: Workload) -> Counter[str]:
    return Counter(plan.graph for plan in workload.pipelines)


def test_parts_are_drawn_by_their_shares_and_the_seed():
    workload = mixed(SESSIONS, GRAPH)
    counts = kinds(workload)
    assert counts.total() == 200 and 30 < counts["coding-sessions"] < 75
    assert workload == mixed(SESSIONS, GRAPH) != mixed(SESSIONS, GRAPH, seed=8)
    assert len({plan.pipeline_id for plan in workload.pipelines}) == 200
    order = [plan.graph for plan in workload.pipelines]
    assert order != sorted(order), "parts are mixed, not one after another"
    said = f"a mix: {counts['coding-sessions']} of coding-sessions, {counts['chain-3']} of chain-3"
    assert workload.notes[0] == said
    assert [graph.name for graph in workload.graphs] == ["chain-3"]


def test_each_part_has_its_own_deadlines_and_all_have_one_arrival_process():
    workload = mixed(SESSIONS, GRAPH, concurrency=None, rate_per_s=2.0)
    for plan in workload.pipelines:
        expected = 5.0 if plan.graph == "chain-3" else pytest.approx(2.0 * plan.standalone_s)
        assert plan.slo_s == expected
    times = [plan.arrival_s for plan in workload.pipelines]
    assert times == sorted(times) and 60 < times[-1] < 140


def test_a_part_draws_its_stretches_from_its_own_range():
    strict = replace(GRAPH, slo_s=None, slo_stretch=(1.2, 1.4))
    plans = mixed(SESSIONS, strict, slo_stretch=(2.0, 4.0)).pipelines
    drawn = [(plan.graph, plan.slo_s / plan.standalone_s) for plan in plans]
    for graph, low, high in (("chain-3", 1.2, 1.4), ("coding-sessions", 2.0, 4.0)):
        own = [stretch for name, stretch in drawn if name == graph]
        assert low <= min(own) < max(own) <= high and len(set(own)) == len(own)


def test_two_parts_of_one_kind_are_told_apart_but_share_the_static_text_of_their_graph():
    twin = replace(GRAPH, slo_s=50.0)
    workload = mixed(GRAPH, twin)
    assert len({plan.pipeline_id for plan in workload.pipelines}) == 200
    assert {plan.slo_s for plan in workload.pipelines} == {5.0, 50.0}
    once = mixed(GRAPH)
    assert workload.graphs == once.graphs
    cached = [sum(ideal_cached_by_call(each).values()) / len(each.pipelines) for each in (workload, once)]
    assert cached[0] == pytest.approx(cached[1], rel=0.02)


def mooncake(tmp_path, name="m.jsonl") -> PartSpec:
    requests = [
        {
            "timestamp": 1000 * i,
            "input_length": 1024 + 200 * i,
            "output_length": 5,
            "hash_ids": [0, 1, *range(2 + i, 3 + i)],
        }
        for i in range(4)
    ]
    (tmp_path / name).write_text("".join(json.dumps(request) + "\n" for request in requests))
    return PartSpec(kind="mooncake", path=tmp_path / name)


def test_long_blocks_are_cut_and_shared_as_before(tmp_path):
    part = mooncake(tmp_path)
    alone = build(WorkloadSpec(kind="mooncake", path=part.path, pipelines=4, concurrency=1, slo_s=1.0), POOLS)
    workload = mixed(part, SESSIONS, pipelines=60)
    chats = [plan for plan in workload.pipelines if plan.graph == "mooncake"]
    prompts = [call.prompt for plan in workload.pipelines for call in plan.calls]
    assert {prompt.block_tokens for prompt in prompts} == {MIX_BLOCK_TOKENS}
    assert [plan.calls[0].prompt.total_tokens for plan in chats] == [1024, 1224, 1424, 1624]
    assert all(plan.calls[0].prompt.tail_tokens < MIX_BLOCK_TOKENS for plan in chats)
    after, before = ideal_cached_by_call(workload), ideal_cached_by_call(alone)
    assert [after[plan.pipeline_id, 0] for plan in chats] == [before[plan.pipeline_id, 0] for plan in alone.pipelines]
    assert any("the recording has 4 of" in note for note in workload.notes)
    assert len(workload.pipelines) == 4 + kinds(workload)["coding-sessions"] < 60


def test_recordings_of_two_files_share_nothing(tmp_path):
    workload = mixed(mooncake(tmp_path, "a.jsonl"), mooncake(tmp_path, "b.jsonl"), pipelines=40)
    assert len({plan.pipeline_id for plan in workload.pipelines}) == 8
    cached = [ideal_cached_by_call(workload)[plan.pipeline_id, 0] for plan in workload.pipelines]
    assert sorted(cached)[:3] == [0, 0, 1023] or sorted(cached)[:3] == [0, 0, 1024]


def test_blocks_that_do_not_divide_are_refused(tmp_path):
    call = {"id": "0", "p": [], "t": 0.0, "dur": 1.0, "gap": None, "kind": "think", "model": "m", "agent": "main"}
    session = {"session": "s", "block": 100, "calls": [call | {"in": 250, "out": 1, "new": [[1, 2]]}]}
    (tmp_path / "s.jsonl").write_text(json.dumps(session))
    part = PartSpec(kind="claude-code", path=tmp_path / "s.jsonl", models=(("*", "qwen3-32b"),))
    with pytest.raises(ScenarioError, match="blocks of 100 tokens"):
        mixed(part)


@pytest.mark.parametrize("loop", [{"concurrency": 4}, {"load": 0.8, "arrival": "bursty"}])
def test_a_mix_on_unequal_workers_runs_to_its_end(tmp_path, loop):
    parts = [
        {"kind": "coding-sessions", "scale_tokens": 0.05},
        {"kind": "graph", "graph": "chain-3", "share": 4},
        {"kind": "mooncake", "path": str(mooncake(tmp_path).path)},
    ]
    pools = [
        {"model": "llama-3.3-70b", "kv_tokens": 100_000},
        {"model": "llama-3.3-70b", "gpu": "b200", "kv_tokens": 150_000, "kv_events": False},
        {"model": "qwen3-32b", "kv_tokens": 100_000},
        {"model": "llama-3.1-8b", "kv_tokens": 100_000},
    ]
    workload = {"kind": "mix", "mix": parts, "pipelines": 20, "think_cap_s": 5, "slo_stretch": 3} | loop
    scenario = scenario_from_dict({"workload": workload, "pool": pools}, tmp_path / "s.toml")
    reports = []
    for case in cases_of(["round-robin", "fabric"], [7], "here"):
        outcome = play(scenario, case, lambda _, __: None)
        assert outcome.report["completed"] == len(outcome.workload.pipelines) > 10
        reports.append(outcome)
    used = {record.worker for record in reports[0].records.calls if record.pool == "llama-3.3-70b"}
    assert used == {"llama-3.3-70b-0", "llama-3.3-70b-1"}
    assert reports[0].report["prompt_tokens"] == reports[1].report["prompt_tokens"]

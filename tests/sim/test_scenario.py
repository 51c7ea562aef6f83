"""Scenario files: defaults, what excludes what, and errors that say what to do."""

from pathlib import Path

import pytest

from amf.sim.scenario import PoolSpec, ScenarioError, load_scenario, pool_worker, scenario_from_dict
from amf.sim.workload import build, fleet_of

EXAMPLES = Path(__file__).parents[2] / "examples"


def parsed(workload: dict, **tables):
    return scenario_from_dict({"workload": workload, **tables}, "s.toml")


def test_defaults_follow_the_documented_ones():
    scenario = parsed({"kind": "coding-sessions"})
    spec = scenario.workload
    assert (spec.pipelines, spec.concurrency, spec.slo_stretch, spec.seed, spec.think_cap_s) == (400, 64, 3.0, 7, 300.0)
    assert spec.rate_per_s is None and spec.load is None and spec.slo_s is None
    assert scenario.pools == () and scenario.faults.slow_worker == 1.0
    assert scenario.run.policies == ("round-robin", "session-affinity", "fabric")


def test_whole_file_is_read(tmp_path):
    path = tmp_path / "night.toml"
    path.write_text(
        """
[workload]
kind = "claude-code"
path = "sub/sessions.jsonl.gz"
rate_per_s = 2
arrival = "gamma"
cv = 3.5
slo_s = 4
[[pool]]
model = "llama-3.3-70b"
workers = 8
kv_tokens = 500_000
[[pool]]
model = "my/model/config.json"
[faults]
worker_loss_per_h = 0.5
[run]
policies = ["fabric"]
"""
    )
    scenario = load_scenario(path)
    assert scenario.name == "night"
    assert scenario.workload.path == tmp_path / "sub/sessions.jsonl.gz"
    assert (scenario.workload.rate_per_s, scenario.workload.concurrency, scenario.workload.slo_stretch) == (
        2.0,
        None,
        None,
    )
    assert scenario.pools[0] == PoolSpec(model="llama-3.3-70b", workers=8, kv_tokens=500_000)
    assert scenario.pools[1].model == str(tmp_path / "my/model/config.json") and scenario.pools[1].name == "model"
    assert scenario.faults.worker_loss_per_h == 0.5 and scenario.run.policies == ("fabric",)


@pytest.mark.parametrize(
    ("workload", "words"),
    [
        ({"kind": "coding-sessions", "concurency": 3}, ["concurency", "'concurrency'"]),
        ({"kind": "coding-session"}, ["'coding-sessions'"]),
        ({"kind": "coding-sessions", "concurrency": 3, "load": 0.5}, ["concurrency and load", "keep one"]),
        ({"kind": "coding-sessions", "slo_stretch": 3, "slo_s": 5}, ["slo_stretch and slo_s"]),
        ({"kind": "coding-sessions", "concurrency": 0}, ["concurrency = 0", "above 0"]),
        ({"kind": "coding-sessions", "concurrency": 2.5}, ["concurrency", "whole number"]),
        ({"kind": "coding-sessions", "seed": True}, ["seed", "whole number"]),
        ({"kind": "coding-sessions", "think_cap_s": -1}, ["think_cap_s"]),
        ({"kind": "coding-sessions", "arrival": "poison"}, ["'poisson'"]),
        ({"kind": "coding-sessions", "arrival": "trace"}, ["records no arrival times"]),
        ({"kind": "mooncake", "path": "x", "arrival": "trace", "load": 1}, ["remove"]),
        ({"kind": "claude-code"}, ["needs path"]),
        ({"kind": "graph"}, ["needs graph"]),
        ({"kind": "graph", "graph": "dag-4", "path": "x"}, ["does not use path"]),
        ({"kind": "claude-code", "path": "x", "graph": "dag-4"}, ["does not use graph"]),
        ({"kind": "claude-code", "path": "x", "scale_tokens": 0.5}, ["scale_tokens"]),
        ({}, ["lacks kind"]),
    ],
)
def test_contradictions_name_file_key_and_remedy(workload, words):
    with pytest.raises(ScenarioError) as error:
        parsed(workload)
    assert "s.toml" in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, ["no [workload]"]),
        ({"workload": {"kind": "coding-sessions"}, "pools": []}, ["'pools'", "'pool'"]),
        ({"workload": {"kind": "coding-sessions"}, "pool": {"model": "x"}}, ["[[pool]]"]),
        ({"workload": {"kind": "coding-sessions"}, "pool": [{"workers": 1}]}, ["lacks model"]),
        ({"workload": {"kind": "coding-sessions"}, "pool": [{"model": "x", "workers": 0}]}, ["workers = 0"]),
        ({"workload": {"kind": "coding-sessions"}, "pool": [{"model": "x"}, {"model": "x"}]}, ["twice"]),
        ({"workload": {"kind": "coding-sessions"}, "faults": {"event_loss": 2}}, ["0 to 1"]),
        ({"workload": {"kind": "coding-sessions"}, "faults": {"slow_worker": 0.5}}, ["slow_worker"]),
        ({"workload": {"kind": "coding-sessions"}, "run": {"policies": "fabric"}}, ["list of texts"]),
        ({"workload": []}, ["must be a table"]),
    ],
)
def test_other_tables_are_checked(data, words):
    with pytest.raises(ScenarioError) as error:
        scenario_from_dict(data, "s.toml")
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("content", [b"[workload", b"\xff\xfe"])
def test_unreadable_files_are_scenario_errors(tmp_path, content):
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ScenarioError, match=r"broken\.toml"):
        load_scenario(path)
    with pytest.raises(ScenarioError, match="cannot be read"):
        load_scenario(tmp_path / "absent.toml")


def test_pool_workers_have_names_profiles_and_memory(tmp_path):
    derived = pool_worker(PoolSpec(model="llama-3.3-70b"), 3)
    assert (derived.name, derived.pool) == ("llama-3.3-70b-3", "llama-3.3-70b")
    assert 300_000 < derived.kv_tokens < 400_000  # 57 GB beside FP8 weights at 160 KiB a token
    assert pool_worker(PoolSpec(model="llama-3.3-70b", kv_tokens=500_000), 0).kv_tokens == 500_000
    for wrong in (
        {"model": "llama-4"},
        {"model": "qwen3-32b", "gpu": "h300"},
        {"model": str(tmp_path / "config.json")},
    ):
        with pytest.raises(ScenarioError, match=r"\[\[pool\]\]"):
            pool_worker(PoolSpec(**wrong), 0)
    with pytest.raises(ScenarioError, match="tensor_parallel = 2"):
        pool_worker(PoolSpec(model="llama-3.3-70b", gpu="h100", weights="bf16"), 0)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_examples_load_and_the_generated_ones_build(path):
    scenario = load_scenario(path)
    fleet = fleet_of(scenario)
    assert all(pool_worker(pool, 0).kv_tokens > 0 for pool in fleet)
    if scenario.workload.path is None:
        workload = build(scenario.workload, fleet)
        assert len(workload.pipelines) == scenario.workload.pipelines


def test_a_fleet_is_required_except_for_built_in_graphs():
    with pytest.raises(ScenarioError, match=r"\[\[pool\]\]"):
        fleet_of(parsed({"kind": "coding-sessions"}))
    fleet = fleet_of(parsed({"kind": "graph", "graph": "coding-7hop"}))
    assert len(fleet) == 4 and sum(pool.workers for pool in fleet) >= 8

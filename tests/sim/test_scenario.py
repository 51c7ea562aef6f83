"""Scenario files: defaults, what excludes what, and errors that say what to do."""

from pathlib import Path

import pytest

from amf.sim.scenario import PoolSpec, ScenarioError, load_scenario, pool_worker, pool_workers, scenario_from_dict
from amf.sim.scenario_checks import part_workload
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
        ({"kind": "coding-sessions", "slo_stretch": 0}, ["[workload] slo_stretch = 0.0", "above 0"]),
        ({"kind": "coding-sessions", "slo_stretch": [8, 1.5]}, ["[workload] slo_stretch = [8, 1.5]", "rising order"]),
        ({"kind": "coding-sessions", "slo_stretch": [3, 3]}, ["rising order", "write one number"]),
        ({"kind": "coding-sessions", "slo_stretch": [0, 3]}, ["above 0"]),
        ({"kind": "coding-sessions", "slo_stretch": [1, float("inf")]}, ["rising order"]),
        ({"kind": "coding-sessions", "slo_stretch": [1, 2, 3]}, ["[workload] slo_stretch = [1, 2, 3]", "two of them"]),
        ({"kind": "coding-sessions", "slo_stretch": [1, True]}, ["two of them", "[1.5, 8.0]"]),
        ({"kind": "coding-sessions", "slo_stretch": "3"}, ["a number or two of them"]),
        ({"kind": "coding-sessions", "slo_stretch": [1, 2], "slo_s": 5}, ["slo_stretch and slo_s"]),
        (
            {"kind": "mix", "mix": [{"kind": "coding-sessions", "slo_stretch": [2, 1]}]},
            ["[[workload.mix]] slo_stretch"],
        ),
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
        ({"kind": "otel"}, ["needs path"]),
        ({"kind": "claude-code", "path": "x", "arrival": "trace"}, ["records no arrival times"]),
        ({"kind": "mooncake", "path": "x", "models": {"a": "b"}}, ["does not use models"]),
        ({"kind": "otel", "path": "x", "models": {"a": 1}}, ["models", '"recorded model" = "pool"']),
        ({"kind": "otel", "path": "x", "models": "a"}, ["models", "table"]),
        ({"kind": "otel", "path": "x", "share_system": True}, ["does not use share_system"]),
        ({"kind": "mix"}, ["needs [[workload.mix]]"]),
        ({"kind": "mix", "mix": {"kind": "azure"}}, ["[[workload.mix]]"]),
        ({"kind": "mix", "mix": [{"kind": "azure"}]}, ["[[workload.mix]]", "needs path"]),
        ({"kind": "mix", "mix": [{"share": 1.0}]}, ["[[workload.mix]] lacks kind"]),
        ({"kind": "mix", "mix": [{"kind": "mix"}]}, ["part of kind"]),
        ({"kind": "mix", "mix": [{"kind": "coding-sessions", "share": 0}]}, ["share = 0", "above 0"]),
        (
            {"kind": "mix", "mix": [{"kind": "coding-sessions", "slo_s": 1, "slo_stretch": 2}]},
            ["slo_stretch and slo_s"],
        ),
        ({"kind": "mix", "mix": [{"kind": "coding-sessions", "shar": 1}]}, ["'share'"]),
        ({"kind": "mix", "arrival": "trace", "mix": [{"kind": "coding-sessions"}]}, ["records no arrival times"]),
        ({"kind": "graph", "graph": "dag-4", "mix": [{"kind": "coding-sessions"}]}, ["does not use mix"]),
        ({"kind": "mix", "mix": 2 * [{"kind": "claude-code", "path": "x", "share_system": True}]}, ["one folder"]),
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
        (
            {
                "workload": {"kind": "coding-sessions"},
                "pool": [{"model": "a/m/config.json"}, {"model": "b/m/config.json"}],
            },
            ["both called m", "rename"],
        ),
        (
            {"workload": {"kind": "coding-sessions"}, "pool": [{"model": "x", "kv_events": 1}]},
            ["kv_events", "true or false"],
        ),
        (
            {"workload": {"kind": "coding-sessions"}, "pool": [{"model": "x", "dram_tokens": -1}]},
            ["dram_tokens = -1", "0 (no tier) or more"],
        ),
        (
            {
                "workload": {"kind": "coding-sessions"},
                "pool": [{"model": "x", "dram_tokens": 9, "dram_bytes_per_s": 0}],
            },
            ["dram_bytes_per_s = 0", "above 0"],
        ),
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


def test_a_worker_carries_its_tier_and_none_where_there_is_none():
    plain = pool_worker(PoolSpec(model="llama-3.3-70b", dram_bytes_per_s=9e9), 0)
    tiered = pool_worker(PoolSpec(model="llama-3.3-70b", dram_tokens=1_000_000, dram_bytes_per_s=9e9), 0)
    assert (plain.dram_tokens, plain.restore_bytes_per_s) == (0, None)
    assert (tiered.dram_tokens, tiered.restore_bytes_per_s) == (1_000_000, 9e9)


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


def test_tables_of_one_model_are_one_pool_of_unequal_workers():
    pools = [
        {"model": "llama-3.3-70b", "workers": 2},
        {"model": "qwen3-32b"},
        {"model": "llama-3.3-70b", "gpu": "b200", "kv_tokens": 300_000, "kv_events": False},
    ]
    scenario = parsed({"kind": "coding-sessions", "pipelines": 20, "load": 0.5}, pool=pools)
    workers = pool_workers(scenario.pools)
    assert [worker.name for worker in workers] == [
        "llama-3.3-70b-0",
        "llama-3.3-70b-1",
        "qwen3-32b-0",
        "llama-3.3-70b-2",
    ]
    assert [worker.pool for worker in workers].count("llama-3.3-70b") == 3
    assert [worker.has_kv_events for worker in workers] == [True, True, True, False]
    first, _, _, last = workers
    assert last.profile.flops_per_s > first.profile.flops_per_s and last.kv_tokens == 300_000
    workload = build(scenario.workload, scenario.pools)
    fast = build(scenario.workload, scenario.pools[2:])
    slow = build(scenario.workload, scenario.pools[:1])
    assert [plan.slo_s for plan in workload.pipelines] == [plan.slo_s for plan in fast.pipelines]
    rates = [float(built.notes[-1].split(" estimated ")[1].split()[0]) for built in (workload, fast, slow)]
    assert rates[0] == pytest.approx(rates[1] + rates[2], rel=1e-3), "unequal workers' rates add up"


def test_a_mix_inherits_what_its_parts_leave_open(tmp_path):
    path = tmp_path / "m.toml"
    path.write_text(
        """
[workload]
kind = "mix"
think_cap_s = 20
scale_tokens = 0.5
slo_stretch = 2.0
[workload.models]
"*" = "qwen3-32b"
[[workload.mix]]
kind = "claude-code"
path = "sessions"
[[workload.mix]]
kind = "graph"
graph = "own.yaml"
slo_s = 9
think_cap_s = 5
"""
    )
    spec = load_scenario(path).workload
    recorded, drawn = (part_workload(spec, part) for part in spec.mix)
    assert (recorded.path, recorded.models) == (tmp_path / "sessions", (("*", "qwen3-32b"),))
    assert (recorded.think_cap_s, recorded.scale_tokens, recorded.slo_stretch, recorded.slo_s) == (20, 1.0, 2.0, None)
    assert (drawn.graph, drawn.models) == (str(tmp_path / "own.yaml"), None)
    assert (drawn.think_cap_s, drawn.scale_tokens, drawn.slo_stretch, drawn.slo_s) == (5, 0.5, None, 9)


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

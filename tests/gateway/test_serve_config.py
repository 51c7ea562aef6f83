"""fabric.toml: what is read, and how mistakes are named."""

from pathlib import Path

import pytest

from amf.config import ConfigError, SloTarget, config_from_dict, load_config
from amf.core.types import SloClass
from amf.engines.engine import Capabilities, EngineInfo
from amf.gateway.auth import Keys
from amf.gateway.profiles import worker_of

WHOLE = """
[server]
port = 0
api_keys = ["a", "b"]
shutdown_grace_s = 5
[fabric]
policy = "essay"
cold_tokens = 1000
tick_s = 2
[[worker]]
url = "http://10.0.0.5:8000"
gpu = "h200"
kv_tokens = 500_000
[[worker]]
url = "http://10.0.0.6:8000"
name = "six"
priority = true
[pools."llama-3.3-70b"]
tokenizer = "engine"
[journal]
path = "j.jsonl"
[limits]
wait_s = 30
"""


def test_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "fabric.toml"
    path.write_text(WHOLE)
    config = load_config(path)
    assert (config.policy, config.fabric.cold_tokens, config.fabric.tick_s) == ("essay", 1000, 2.0)
    assert config.server.api_keys == ("a", "b") and config.server.shutdown_grace_s == 5.0
    assert [worker.name for worker in config.workers] == [None, "six"]
    assert config.workers[0].kv_tokens == 500_000 and config.workers[1].priority
    assert config.pools["llama-3.3-70b"].tokenizer == "engine"
    assert (config.journal.path, config.limits.wait_s) == ("j.jsonl", 30.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[server]\nprot = 1", ("[server]", "`prot`", "`port`")),
        ("[fabric]\ncold_token = 1", ("[fabric]", "`cold_tokens`")),
        ("[fabric]\npolicy = 3", ("policy",)),
        ("[fabric]\ncold_tokens = 'many'", ("[fabric]", "cold_tokens")),
        ("[workers]\n", ("`workers`", "`worker`")),
        ("[worker]\nurl = 'http://x'", ("[[worker]]",)),
        ("[[worker]]\nurl = '10.0.0.5'", ("http://",)),
        ("[[worker]]\nengine = 'vllm'", ("url",)),
        ("[[worker]]\nurl = 'http://x'\nengine = 'tgi9'", ("[[worker]]", "engine")),
        ("[[worker]]\nurl = 'http://x'\n[[worker]]\nurl = 'http://x'", ("twice",)),
        ("[pools.m]\ntokeniser = 'x'", ("[pools.m]", "`tokenizer`")),
        ("[server]\nport = 70000", ("port", "65535")),
        ("[server]\ntime_scale = 0", ("time_scale",)),
        ("[limits]\nwait_s = -1", ("wait_s",)),
        ("[server\n", ("TOML",)),
        ("[slo]\ninteractive_deadline_ms = 5", ("[slo]", "`interactive_deadline_s`")),
        ("[fabric]\nbudget_quantile = 90", ("budget_quantile", "0 to 1")),
        ("[slo]\ninteractive_deadline_s = 0", ("interactive_deadline_s", "above 0")),
        ("[slo]\nbackground_deadline_s = 1e9", ("[slo]", "max_deadline_s")),
        ("[slo]\ndefault_class = 'now'", ("[slo]", "now")),
        ("[slo]\ngraphs = 5", ("[slo.graphs]", "table")),
        ("[slo.graphs.coding]\ndeadline = 5", ("[slo.graphs.coding]", "`deadline_s`")),
        ("[slo.graphs.coding]\ndeadline_s = -5", ("[slo.graphs.coding]", "above 0")),
        ("[slo.graphs.coding]\ndeadline_s = 1e9", ("[slo.graphs.coding]", "max_deadline_s")),
        ("[slo.keys.secret]\ndeadline_s = 5", ("[slo.keys]", "api_keys")),
        ("[fabric.tenant_weights]\nsecret = 2", ("[fabric.tenant_weights]", "api_keys")),
        ("[server]\napi_keys = ['a']\n[fabric.tenant_weights]\na = 0", ("[fabric.tenant_weights]", "above 0")),
        ("[server]\napi_keys = ['a']\n[fabric.tenant_weights]\na = inf", ("[fabric.tenant_weights]", "above 0")),
        ("[fabric]\ntenant_weights = 2", ("[fabric]", "tenant_weights")),
        ("[residency]\nurl = '10.0.0.9:9000'", ("[residency]", "http://")),
        ("[residency]\nurls = 'http://x'", ("[residency]", "`url`")),
        ("[residency]\ntimeout_s = 0", ("[residency]", "timeout_s", "above 0")),
        ("[residency]\ndelay_s = -1", ("[residency]", "delay_s")),
        ("[[worker]]\nurl = 'http://x'\nlmcache_instance = 'a'", ("[[worker]]", "[residency] url")),
        ("[[worker]]\nurl = 'http://x'\nlmcache_instance = ''", ("[[worker]]", "lmcache_instance")),
        (
            "[residency]\nurl = 'http://y'\n[[worker]]\nurl = 'http://x'\nlmcache_instance = 'a'",
            ("[[worker]]", '[pools."MODEL"] tokenizer'),
        ),
    ],
)
def test_mistakes_are_named_with_a_remedy(text: str, words: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "fabric.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    for word in (str(path), *words):
        assert word in str(caught.value)


def test_targets_of_runs() -> None:
    slo = {
        "background_deadline_s": 900,
        "default_class": "throughput",
        "graphs": {"coding": {"deadline_s": 60}},
        "keys": {"a": {"slo_class": "background"}},
    }
    read = config_from_dict({"server": {"api_keys": ["a"]}, "slo": slo}).slo
    assert (read.background_deadline_s, read.default_class) == (900.0, SloClass.THROUGHPUT)
    assert read.graphs == {"coding": SloTarget(deadline_s=60.0)}
    assert read.keys == {"a": SloTarget(slo_class=SloClass.BACKGROUND)}


def test_weights_are_of_api_keys_and_known_by_their_tenants_names() -> None:
    document = {"server": {"api_keys": ["a"], "trusted_keys": ["b"]}, "fabric": {"tenant_weights": {"a": 2, "b": 0.5}}}
    weights = config_from_dict(document).fabric.tenant_weights
    tenants = [Keys(("a",), ("b",)).caller({"x-api-key": key}).tenant for key in ("a", "b")]
    assert weights == dict(zip(tenants, (2.0, 0.5), strict=True)) and "a" not in weights


def test_errors_do_not_repeat_api_keys() -> None:
    for weight in (1.0, 0.0, "much"):
        with pytest.raises(ConfigError) as refused:
            config_from_dict({"fabric": {"tenant_weights": {"s3cret": weight}}})
        assert "s3cret" not in str(refused.value)
    for table in ({"deadline": 5}, {"deadline_s": 0}, {"deadline_s": 1e9}, {"slo_class": "now"}, {"deadline_s": 5}):
        with pytest.raises(ConfigError) as caught:
            config_from_dict({"slo": {"keys": {"s3cret": table}}})
        assert "s3cret" not in str(caught.value)


def test_a_missing_file() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(Path("/nowhere/fabric.toml"))


def info(model: str, **more: object) -> EngineInfo:
    return EngineInfo(engine="vllm", models=(model,), capabilities=Capabilities(kv_events=True), **more)  # type: ignore[arg-type]


def test_beliefs_about_a_worker_come_from_config_then_probe_then_presets() -> None:
    document = {"worker": [{"url": "http://x", "gpu": "h200", "tensor_parallel": 2, "weights": "fp8"}]}
    config = config_from_dict(document).workers[0]
    big = worker_of(config, "w", info("meta-llama/Llama-3.3-70B-Instruct", block_tokens=32), exact=True)
    small = worker_of(config, "w", info("my-own-model", kv_tokens=777), exact=False)
    assert big.profile.flops_per_token > 5 * small.profile.flops_per_token
    assert (big.block_tokens, big.has_kv_events, big.kv_tokens > 100_000) == (32, True, True)
    assert (small.block_tokens, small.has_kv_events, small.kv_tokens) == (16, False, 777)


@pytest.mark.parametrize(
    ("configured", "probed", "expected"), [(8, 4, 8), (None, 4, 4), (8, None, 8), (None, None, 256)]
)
def test_how_many_run_at_once_comes_from_config_then_probe(
    configured: int | None, probed: int | None, expected: int
) -> None:
    told = {} if configured is None else {"max_running": configured}
    config = config_from_dict({"worker": [{"url": "http://x", **told}]}).workers[0]
    assert worker_of(config, "w", info("m", max_running=probed), exact=False).max_running == expected


def test_a_worker_has_the_tier_it_is_configured_with() -> None:
    document = {
        "worker": [{"url": "http://x", "dram_tokens": 2_000_000, "dram_bytes_per_s": 25e9}, {"url": "http://y"}]
    }
    tiered, plain = (worker_of(each, "w", info("m"), exact=True) for each in config_from_dict(document).workers)
    assert (tiered.dram_tokens, tiered.restore_bytes_per_s) == (2_000_000, 25e9)
    assert (plain.dram_tokens, plain.restore_bytes_per_s) == (0, None)


def test_a_worker_that_serves_something_else_is_refused() -> None:
    config = config_from_dict({"worker": [{"url": "http://x", "model": "a"}]}).workers[0]
    with pytest.raises(ConfigError, match="does not serve `a` but b"):
        worker_of(config, "w", info("b"), exact=False)
    config = config_from_dict({"worker": [{"url": "http://x", "gpu": "h2000"}]}).workers[0]
    with pytest.raises(ConfigError, match="h200"):
        worker_of(config, "w", info("b"), exact=False)

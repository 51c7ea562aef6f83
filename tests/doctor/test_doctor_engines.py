"""`amf doctor` on single engines, without a call."""

import json
import socket
from pathlib import Path

import pytest
from aiohttp import web
from doctor_kit import amf, doctor, emulated, fabric_toml, levels, proxied, replacing, without_key


async def test_a_sound_engine_has_nothing_but_ok(tmp_path: Path) -> None:
    async with emulated(kv_events_port=0) as emulator:
        config = fabric_toml(tmp_path, {"url": emulator.url, "name": "a"}, tokenizer="engine")
        result, findings = await doctor("-c", config, folder=tmp_path)
    assert result.exit_code == 0
    seen = levels(findings, "a")
    assert seen.pop("probe") == "skip"
    assert set(seen.values()) == {"ok"}, result.output
    assert {"reachable", "health", "models", "adapter", "prefix caching", "KV events", "KV replay", "tokenizer"} <= set(
        seen
    )
    assert "owned_by: vllm" in findings["a", "adapter"]["seen"]
    assert "65,536 tokens" in findings["a", "KV memory"]["seen"]
    assert "whole seconds" in findings["a", "clock"]["seen"]
    assert "0 fail, 0 warn, 1 skip" in result.output


async def test_no_engine_there(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    result, findings = await doctor("--worker", url, folder=tmp_path)
    assert result.exit_code == 1
    ((_, found),) = findings.items()
    assert (found["check"], found["level"]) == ("reachable", "fail")
    assert "curl" in found["fix"] and url in result.output


async def test_a_login_that_is_refused_names_the_key(tmp_path: Path) -> None:
    async with emulated() as emulator, proxied(emulator.url, instead=without_key) as url:
        result, findings = await doctor("--worker", url, folder=tmp_path)
        (found,) = findings.values()
        assert result.exit_code == 1 and "status 401" in found["seen"] and "`api_key`" in found["fix"]
        config = fabric_toml(tmp_path, {"url": url, "name": "a", "api_key": "sesame"})
        result, findings = await doctor("-c", config, folder=tmp_path)
    assert result.exit_code == 0 and findings["a", "prefix caching"]["level"] == "ok"
    assert "sesame" not in result.output


async def test_what_answers_and_names_no_model_is_no_engine(tmp_path: Path) -> None:
    async with emulated() as emulator, proxied(emulator.url, edit=lambda _, body: b"{}") as url:
        _, findings = await doctor("--worker", url, folder=tmp_path)
    (found,) = findings.values()
    assert found["level"] == "fail" and "no model" in found["seen"]


async def test_a_model_that_is_not_served(tmp_path: Path) -> None:
    async with emulated() as emulator:
        config = fabric_toml(tmp_path, {"url": emulator.url, "name": "a", "model": "other"})
        result, findings = await doctor("-c", config, folder=tmp_path)
    assert result.exit_code == 1
    assert findings["a", "models"]["level"] == "fail"
    assert 'model = "llama-3.1-8b"' in findings["a", "models"]["fix"]


@pytest.mark.parametrize(
    ("path", "old", "new", "check", "level", "word"),
    [
        ("/metrics", b'prefix_caching="True"', b'prefix_caching="False"', "prefix caching", "fail", "--enable-prefix"),
        ("/metrics", b'enable_prefix_caching="True"', b'other="x"', "prefix caching", "skip", "--enable-prefix"),
        ("/metrics", b"vllm:cache_config_info", b"vllm:something_else", "metrics", "warn", "/metrics"),
        ("/metrics", b'cache_dtype="fp8"', b'cache_dtype="bfloat16"', "KV format", "warn", 'kv = "bf16"'),
        ("/metrics", b'cache_dtype="fp8"', b'cache_dtype="auto"', "KV format", "skip", ""),
    ],
)
async def test_flags(tmp_path: Path, path: str, old: bytes, new: bytes, check: str, level: str, word: str) -> None:
    async with emulated() as emulator, proxied(emulator.url, edit=replacing(path, old, new)) as url:
        config = fabric_toml(tmp_path, {"url": url, "name": "a"})
        result, findings = await doctor("-c", config, folder=tmp_path)
    assert findings["a", check]["level"] == level
    assert word in findings["a", check]["fix"]
    assert result.exit_code == (level == "fail")


async def test_an_engine_nobody_knows_is_taken_as_plain_and_that_is_said(tmp_path: Path) -> None:
    def hidden(path: str, body: bytes) -> bytes:
        return body.replace(b"vllm", b"acme")

    async with emulated() as emulator, proxied(emulator.url, edit=hidden) as url:
        result, findings = await doctor("--worker", url, folder=tmp_path)
        subject = url.removeprefix("http://")
        assert result.exit_code == 0
        seen = levels(findings, subject)
        assert (seen["adapter"], seen["KV memory"], seen["block size"]) == ("warn", "warn", "skip")
        assert "kv_tokens" in findings[subject, "KV memory"]["fix"]
        assert "prefix caching" not in seen and "KV events" not in seen
        config = fabric_toml(tmp_path, {"url": url, "name": "a", "engine": "vllm"})
        _, findings = await doctor("-c", config, folder=tmp_path)
    assert "as configured" in findings["a", "adapter"]["seen"]


async def test_what_is_configured_against_what_the_engine_says(tmp_path: Path) -> None:
    async with emulated() as emulator:
        wrong = {"url": emulator.url, "name": "a", "kv_tokens": 1_000_000, "block_tokens": 32}
        _, findings = await doctor("-c", fabric_toml(tmp_path, wrong), folder=tmp_path)
        assert levels(findings, "a")["KV memory"] == levels(findings, "a")["block size"] == "fail"
        right = {"url": emulator.url, "name": "a", "kv_tokens": 1_000}
        _, findings = await doctor("-c", fabric_toml(tmp_path, right), folder=tmp_path)
    assert "1,000 tokens, as configured" in findings["a", "KV memory"]["seen"]


@pytest.mark.parametrize(("tokenizer", "since"), [(None, True), ("engine", False)])
async def test_events_that_are_off(tmp_path: Path, tokenizer: str | None, since: bool) -> None:
    async with emulated() as emulator:
        config = fabric_toml(tmp_path, {"url": emulator.url, "name": "a"}, tokenizer=tokenizer)
        _, findings = await doctor("-c", config, folder=tmp_path)
    found = findings["a", "KV events"]
    assert found["level"] == "warn" and "--kv-events-config" in found["fix"] and ("0.32" in found["seen"]) == since


@pytest.mark.parametrize(
    ("tokenizer", "version", "level"), [(None, b"0.31.0", "warn"), (None, b"0.32.1", ""), ("engine", b"0.31.0", "")]
)
async def test_events_that_are_not_followed(tmp_path: Path, tokenizer: str | None, version: bytes, level: str) -> None:
    """Text mode needs events that name requests, which older releases do not send."""
    edit = replacing("/version", b"0.32.0", version)
    async with emulated(kv_events_port=0) as emulator, proxied(emulator.url, edit=edit) as url:
        config = fabric_toml(tmp_path, {"url": url, "name": "a"}, tokenizer=tokenizer)
        _, findings = await doctor("-c", config, folder=tmp_path)
    assert levels(findings, "a")["KV events"] == "ok"
    assert levels(findings, "a").get("KV events used", "") == level


@pytest.mark.parametrize(
    ("root", "level", "word"), [("llama-3.1-8b", "warn", "alias"), ("/adapters/sql", "ok", "alias are taken")]
)
async def test_several_names(tmp_path: Path, root: str, level: str, word: str) -> None:
    """A name with the same root is the same model; with another, an adapter."""

    def named(path: str, body: bytes) -> bytes:
        if path != "/v1/models":
            return body
        listing = json.loads(body)
        return json.dumps(
            {**listing, "data": [*listing["data"], {**listing["data"][0], "id": "alias", "root": root}]}
        ).encode()

    async with emulated() as emulator, proxied(emulator.url, edit=named) as url:
        _, findings = await doctor("-c", fabric_toml(tmp_path, {"url": url, "name": "a"}), folder=tmp_path)
    assert findings["a", "models"]["level"] == level and word in findings["a", "models"]["seen"]


async def test_event_ports_where_something_else_listens(tmp_path: Path) -> None:
    async with emulated() as emulator:
        closed = emulator.url.replace("http:", "tcp:")
        endpoints = {"kv_events_endpoint": closed, "kv_replay_endpoint": closed}
        config = fabric_toml(tmp_path, {"url": emulator.url, "name": "a", **endpoints})
        result, findings = await doctor("-c", config, folder=tmp_path)
        assert result.exit_code == 1
        assert levels(findings, "a")["KV events"] == levels(findings, "a")["KV replay"] == "fail"
        assert "kv_replay_endpoint" in findings["a", "KV replay"]["fix"]
        config = fabric_toml(tmp_path, {"url": emulator.url, "name": "a", "kv_events_endpoint": closed})
        _, findings = await doctor("-c", config, folder=tmp_path)
    assert findings["a", "KV replay"]["level"] == "warn"


@pytest.mark.parametrize(
    ("policy", "configured", "level"),
    [
        ("fcfs", True, "fail"),
        ("fcfs", False, "ok"),
        ("priority", True, "ok"),
        ("priority", False, "warn"),
        (None, True, ""),
    ],
)
async def test_a_server_in_development_mode_says_how_it_schedules(
    tmp_path: Path, policy: str | None, configured: bool, level: str
) -> None:
    """As vLLM 0.32 with VLLM_SERVER_DEV_MODE=1 answers it."""

    async def told(request: web.Request) -> web.Response | None:
        if request.path != "/server_info" or request.query.get("config_format") != "json":
            return None
        return web.json_response({"vllm_config": {"scheduler_config": {"policy": policy} if policy else None}})

    async with emulated() as emulator, proxied(emulator.url, instead=told) as url:
        config = fabric_toml(tmp_path, {"url": url, "name": "a", "priority": configured})
        _, findings = await doctor("-c", config, folder=tmp_path)
    assert levels(findings, "a").get("priority", "") == level


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "--worker URL, -c fabric.toml, --gateway URL or --prompts"),
        (("--worker", "10.0.0.1:8000"), "http://"),
        (("--gateway", "10.0.0.1"), "http://HOST:PORT"),
        (("-c", "/nowhere.toml"), "cannot be read"),
        (("--prompts", "/nowhere.jsonl"), "cannot be read"),
        (("--worker", "http://127.0.0.1:9", "--json", "/nowhere/at/all.json"), "--json"),
    ],
)
async def test_mistakes_end_with_2_and_a_remedy(arguments: tuple[str, ...], word: str) -> None:
    result = await amf("doctor", *arguments)
    assert result.exit_code == 2
    assert word in result.output and "Traceback" not in result.output


async def test_help_has_examples() -> None:
    for command in ("doctor", "workers"):
        result = await amf(command, "--help")
        assert result.exit_code == 0 and f"Example: amf {command}" in result.output

"""What `amf doctor` says of LMCache's controller, and `amf workers` of who is one of its instances."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from doctor_kit import amf, doctor, emulated, fabric_toml, levels, proxied

from amf.config import load_config
from amf.gateway.service import running_gateway
from fake_lmcache import CHUNK_TOKENS, FakeController, fake_controller

SUBJECT = "residency"


def configured(folder: Path, controller: str, *workers: dict[str, Any], exact: bool = True, **keys: Any) -> Path:
    path = fabric_toml(folder, *workers, tokenizer="engine" if exact else None)
    if not exact:  # some other pool is exact, or the file would be refused
        path.write_text(path.read_text() + '\n[pools."other"]\ntokenizer = "engine"')
    residency = {"url": controller, "delay_s": 10.0, **keys}
    lines = [f"{key} = {json.dumps(value)}" for key, value in residency.items()]
    path.write_text("\n".join([path.read_text(), "[residency]", *lines]))
    return path


@asynccontextmanager
async def storing(url: str, controller: FakeController, instance: str) -> AsyncIterator[str]:
    """An engine with LMCache's connector: what it computes is reported to the controller."""

    async def store(request: web.Request) -> web.Response | None:
        if request.path == "/v1/completions":
            controller.hold(instance, json.loads(await request.read())["prompt"])
        return None

    async with proxied(url, instead=store) as behind:
        yield behind


async def test_all_is_well(tmp_path: Path) -> None:
    async with fake_controller("a", "b") as lmcache, emulated() as one, storing(one.url, lmcache, "b") as url:
        path = configured(tmp_path, lmcache.url, {"url": url, "name": "w", "lmcache_instance": "b"})
        result, found = await doctor("-c", path, "--probe", folder=tmp_path)
    assert levels(found, SUBJECT) == dict.fromkeys(("controller", "lookup", "instance b", "chunks of w"), "ok")
    assert "knows a, b" in found[SUBJECT, "controller"]["seen"]
    assert f"{CHUNK_TOKENS} tokens in LocalCPUBackend" in found[SUBJECT, "chunks of w"]["seen"]
    assert result.exit_code == 0


async def test_what_can_be_wrong_with_instances(tmp_path: Path) -> None:
    workers = [{"url": "http://127.0.0.1:9", "name": name, "lmcache_instance": "z"} for name in "xy"]
    async with fake_controller("a") as lmcache, emulated() as one:
        path = configured(tmp_path, lmcache.url, {"url": one.url, "name": "w", "lmcache_instance": "a"}, *workers)
        _, found = await doctor("-c", path, "--probe", folder=tmp_path)
    assert (
        found[SUBJECT, "instance z"]["level"] == "fail"
        and "lmcache_instance_id: z" in found[SUBJECT, "instance z"]["fix"]
    )
    assert found[SUBJECT, "chunks of x"]["level"] == "skip"
    # The emulator reports to no controller: the same as one that hashes tokens otherwise.
    assert found[SUBJECT, "chunks of w"]["level"] == "fail" and "PYTHONHASHSEED" in found[SUBJECT, "chunks of w"]["fix"]


async def test_text_prompts_slow_lookups_and_nobody_mapped(tmp_path: Path) -> None:
    async with fake_controller("a") as lmcache, emulated() as one:
        worker = {"url": one.url, "name": "w"}
        path = configured(tmp_path, lmcache.url, {**worker, "lmcache_instance": "a"}, exact=False, delay_s=0.0)
        _, found = await doctor("-c", path, folder=tmp_path)
        assert found[SUBJECT, "prompts of w"]["level"] == "fail"
        assert found[SUBJECT, "prompts of w"]["fix"] == 'set [pools."llama-3.1-8b"] tokenizer'
        assert found[SUBJECT, "lookup"]["level"] == "warn" and "delay_s" in found[SUBJECT, "lookup"]["fix"]
        _, found = await doctor("-c", configured(tmp_path, lmcache.url, worker), folder=tmp_path)
        assert levels(found, SUBJECT) == {"controller": "ok", "lookup": "ok", "instances": "warn"}


async def _ill(_: web.Request) -> web.Response:
    return web.json_response({"event_id": "e", "error_codes": {"0": 0, "1": 7}})


async def _refused(_: web.Request) -> web.Response:
    return web.json_response({"detail": "no socket"}, status=500)


@pytest.mark.parametrize(("health", "level", "word"), [(_ill, "fail", "ranks 1"), (_refused, "warn", "status 500")])
async def test_an_instance_that_is_not_well(
    tmp_path: Path, health: Callable[[web.Request], Awaitable[web.Response]], level: str, word: str
) -> None:
    async def instead(request: web.Request) -> web.Response | None:
        return await health(request) if request.path == "/health" else None

    async with fake_controller("a") as lmcache, emulated() as one, proxied(lmcache.url, instead=instead) as url:
        worker = {"url": one.url, "name": "w", "lmcache_instance": "a"}
        _, found = await doctor("-c", configured(tmp_path, url, worker), folder=tmp_path)
    assert found[SUBJECT, "instance a"]["level"] == level and word in found[SUBJECT, "instance a"]["seen"]


@pytest.mark.parametrize("fault", ["dead", "404", "garbage"])
async def test_a_controller_that_is_none(tmp_path: Path, fault: str) -> None:
    async with fake_controller("a") as lmcache, emulated() as one:
        lmcache.fault = fault
        url = "http://127.0.0.1:9" if fault == "dead" else lmcache.url
        path = configured(tmp_path, url, {"url": one.url, "name": "w", "lmcache_instance": "a"})
        result, found = await doctor("-c", path, folder=tmp_path)
    assert levels(found, SUBJECT) == {"controller": "fail"} and result.exit_code == 1
    assert url in found[SUBJECT, "controller"]["seen"] and "[residency] url" in found[SUBJECT, "controller"]["fix"]


async def test_workers_shows_who_is_an_instance(tmp_path: Path) -> None:
    async with fake_controller("a") as lmcache, emulated() as one, emulated() as two:
        path = configured(
            tmp_path, lmcache.url, {"url": one.url, "name": "v", "lmcache_instance": "a"}, {"url": two.url}
        )
        config = load_config(path)
        async with running_gateway(replace(config, server=replace(config.server, port=0))) as gateway:
            result = await amf("workers", "--gateway", gateway.url)
    lines = result.output.splitlines()
    assert any(line.startswith("v ") and "LMCache a" in line for line in lines)
    assert any(line.startswith(f"No tiers below HBM ({two.url.removeprefix('http://')})") for line in lines)

"""The vLLM adapter and the gateway against a real vLLM."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest

from amf.config import PoolConfig, ServeConfig, ServerConfig, WorkerConfig
from amf.core.config import FabricConfig
from amf.engines.choose import connect
from amf.engines.engine import Engine, EngineRequest
from amf.engines.http import open_session
from amf.engines.keys import token_keys
from amf.engines.options import EngineLimits, EngineOptions
from amf.engines.vllm import VllmEngine
from amf.gateway.service import running_gateway
from engine_belief import believing, until
from real.install import VLLM
from real.server import MODEL_NAME, Server, Setup, vllm

SETUP = Setup(kv_blocks=129, max_running=1, token_budget=512, scheduling="priority")
LIMITS = EngineLimits(observe_interval_s=0.05)
BLOCK = SETUP.block_tokens


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with vllm(SETUP, tmp_path_factory.mktemp("vllm")) as server:
        yield server


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with open_session() as session:
        yield session


@pytest.fixture
async def engine(server: Server, session: aiohttp.ClientSession) -> AsyncIterator[VllmEngine]:
    engine = VllmEngine(server.url, session, EngineOptions(limits=LIMITS, priority=True))
    yield engine
    await engine.close()


def request(urgency_s: float = 0.0, **body: Any) -> EngineRequest:
    whole = {"model": MODEL_NAME, "ignore_eos": True, "max_tokens": 1, **body}
    return EngineRequest(
        request_id="r1",
        path="/v1/completions",
        body=json.dumps(whole).encode(),
        headers={"content-type": "application/json"},
        urgency_s=urgency_s,
        session_id="run-1",
    )


async def answer(engine: Engine, attempt: EngineRequest) -> bytes:
    async with engine.generate(attempt) as upstream:
        body = b"".join([chunk async for chunk in upstream.chunks()])
        assert upstream.status == 200, body
        return body


def cached(usage: dict[str, Any]) -> int:
    return (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0


def prompt(first: int, tokens: int = 10 * BLOCK + 5) -> list[int]:
    return [3 + (first + 7 * place) % 1000 for place in range(tokens)]


async def test_probe_tells_what_the_server_was_started_with(server: Server, session: aiohttp.ClientSession) -> None:
    engine = await connect(server.url, session, EngineOptions(limits=LIMITS, priority=True))
    info = await engine.probe()
    assert (info.engine, info.models, info.block_tokens) == ("vllm", (MODEL_NAME,), BLOCK)
    assert info.version is not None and info.version.startswith(VLLM)
    assert info.kv_tokens == SETUP.kv_tokens
    assert info.max_model_tokens == SETUP.context_tokens
    assert info.capabilities.kv_events and info.capabilities.priority == "lower-first"
    assert await engine.healthy()


async def test_a_stream_ends_with_usage_and_the_second_time_is_warm(engine: VllmEngine) -> None:
    ours = prompt(1)
    for expected in (0, 10 * BLOCK):
        body = await answer(engine, request(prompt=ours, max_tokens=5, stream=True))
        assert body.endswith(b"data: [DONE]\n\n")
        chunks = [json.loads(line[6:]) for line in body.splitlines() if line.startswith(b"data: {")]
        usage = chunks[-1]["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"], cached(usage)) == (len(ours), 5, expected)


async def test_events_name_blocks_by_our_keys_and_are_replayed_to_who_comes_late(
    server: Server, engine: VllmEngine, session: aiohttp.ClientSession
) -> None:
    first, second = prompt(101), prompt(202)
    async with believing(engine) as belief:
        await answer(engine, request(prompt=first))
        await until(lambda: all(belief.copies[key] == 1 for key in token_keys(first, BLOCK)))
        assert belief.index.orphans == belief.index.unknown == 0
        assert "run-1" in belief.sessions
        later = VllmEngine(server.url, session, EngineOptions(limits=LIMITS))
        async with believing(later) as replayed:
            await answer(later, request(prompt=second))  # a batch with a number: what came before it is asked for
            await until(lambda: all(replayed.copies[key] == 1 for key in token_keys(second, BLOCK)))
            await until(lambda: all(belief.copies[key] == 1 for key in token_keys(second, BLOCK)))
            assert +replayed.copies == +belief.copies and replayed.copies[token_keys(first, BLOCK)[-1]] == 1


async def test_a_reset_cache_is_told_with_the_next_request(server: Server, engine: VllmEngine) -> None:
    async with believing(engine) as belief:
        await answer(engine, request(prompt=prompt(303)))
        await until(lambda: +belief.copies)
        async with engine.session.post(server.url + "/reset_prefix_cache") as response:
            assert response.status == 200
        await answer(engine, request(prompt=prompt(404)))
        keys = token_keys(prompt(404), BLOCK)
        await until(lambda: +belief.copies == Counter(keys))
        assert belief.clears[-1] == "the engine reset its cache"


async def test_the_more_urgent_is_served_first(engine: VllmEngine) -> None:
    """One slot, taken; of those that wait for it, the least urgent was sent first and is served last."""
    served: list[float] = []

    async def send(urgency_s: float) -> None:
        await answer(engine, request(urgency_s, prompt=prompt(int(500 + urgency_s)), max_tokens=40))
        served.append(urgency_s)

    occupying = engine.generate(request(-99.0, prompt=prompt(600), max_tokens=3000, stream=True))
    async with asyncio.timeout(60), asyncio.TaskGroup() as group, occupying as upstream:
        await anext(aiter(upstream.chunks()))
        for waiting, urgency_s in enumerate([9.0, 5.0, -1.0], start=1):
            group.create_task(send(urgency_s))
            while (load := await engine.load()) is None or load.waiting < waiting:
                await asyncio.sleep(0.01)
    assert served == [-1.0, 5.0, 9.0]


async def test_leaving_early_frees_the_blocks(engine: VllmEngine) -> None:
    async with engine.generate(request(prompt=prompt(800), max_tokens=3000, stream=True)) as upstream:
        await anext(aiter(upstream.chunks()))
        async with asyncio.timeout(10):
            while (load := await engine.load()) is None or not load.running:
                await asyncio.sleep(0.01)
        assert load.kv_used_ratio > 0
    async with asyncio.timeout(10):
        while (load := await engine.load()) is None or load.running or load.kv_used_ratio:
            await asyncio.sleep(0.01)


async def test_the_gateway_predicts_what_the_engine_finds(server: Server) -> None:
    """Exact mode: chat is tokenised by the engine, warmth is what its events say, and its own count agrees."""
    config = ServeConfig(
        server=ServerConfig(port=0),
        workers=(WorkerConfig(url=server.url, name="w0", priority=True),),
        pools={MODEL_NAME: PoolConfig(tokenizer="engine")},
    )
    messages = [{"role": "user", "content": "baceni dofugu " * 120}]
    async with running_gateway(config) as gateway, aiohttp.ClientSession() as client:
        for turn in range(3):
            body = {"model": MODEL_NAME, "messages": messages, "max_tokens": 20, "ignore_eos": True}
            async with client.post(gateway.url + "/v1/chat/completions", json=body) as response:
                told = json.loads(await response.read())
                assert response.status == 200, told
            warm, found = int(response.headers["x-amf-warm-tokens"]), cached(told["usage"])
            assert (found > 300) == (turn > 0)
            assert abs(warm - found) <= BLOCK, (turn, warm, found)
            messages += [told["choices"][0]["message"], {"role": "user", "content": f"next {turn}"}]
            await until(lambda: gateway.driver.open_calls() == 0)
        gateway.fabric.check_invariants()


async def test_text_follows_evictions_that_the_gateway_did_not_cause(server: Server, engine: VllmEngine) -> None:
    """Text mode: events name the request that stored a block, and so what traffic around the gateway pushed out is known."""
    config = ServeConfig(
        server=ServerConfig(port=0),
        workers=(WorkerConfig(url=server.url, name="w0", priority=True),),
        fabric=FabricConfig(event_lag_s=0.2),
    )
    body = {"model": MODEL_NAME, "max_tokens": 20, "ignore_eos": True}
    body["messages"] = [{"role": "user", "content": "gulopa sedi " * 120}]
    async with running_gateway(config) as gateway, aiohttp.ClientSession() as client:

        async def ask() -> tuple[int, int]:
            async with client.post(gateway.url + "/v1/chat/completions", json=body) as response:
                told = json.loads(await response.read())
                assert response.status == 200, told
            return int(response.headers["x-amf-warm-tokens"]), cached(told["usage"])

        seen = gateway.metrics.events
        assert (await ask())[0] == 0
        await until(lambda: seen.labels("PrefixStored")._value.get() > 0)
        for _ in range(3):  # until the length of a token is known
            await ask()
        await asyncio.sleep(2 * config.fabric.event_lag_s)  # what was predicted counts no more
        warm, found = await ask()
        assert found > 300 and abs(warm - found) < 0.1 * found + 2 * BLOCK, (warm, found)
        for number in range(2 * SETUP.kv_blocks // 10):
            await answer(engine, request(prompt=prompt(1_000 + number)))
        await until(lambda: seen.labels("PrefixEvicted")._value.get() > 0)
        await asyncio.sleep(2 * config.fabric.event_lag_s)
        warm, found = await ask()
        assert found == 0 and warm < 2 * BLOCK, (warm, found)
        gateway.fabric.check_invariants()

"""What a real llama.cpp server does beyond the contract (test_live_contract.py), and the gateway on it."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest

from amf.config import PoolConfig, ServeConfig, ServerConfig, WorkerConfig
from amf.engines.engine import EngineRequest, LoadReport
from amf.engines.http import open_session
from amf.engines.llamacpp import LlamaCppEngine
from amf.engines.options import EngineLimits, EngineOptions
from amf.gateway.service import Gateway, running_gateway
from contract.under_test import ask
from engine_belief import until
from real.llamacpp import LlamaCppServer, LlamaCppSetup, llamacpp
from real.server import MODEL_NAME

SETUP = LlamaCppSetup()
OPTIONS = EngineOptions(limits=EngineLimits(observe_interval_s=0.05))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaCppServer]:
    with llamacpp(SETUP, tmp_path_factory.mktemp("llamacpp")) as server:
        yield server


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with open_session() as session:
        yield session


@pytest.fixture
async def engine(server: LlamaCppServer, session: aiohttp.ClientSession) -> AsyncIterator[LlamaCppEngine]:
    engine = LlamaCppEngine(server.url, session, OPTIONS)
    yield engine
    await engine.close()


def prompt(first: int, tokens: int = 600) -> list[int]:
    return [3 + (first + 7 * place) % 1000 for place in range(tokens)]


def request(path: str = "/v1/completions", **body: Any) -> EngineRequest:
    whole = {"model": MODEL_NAME, "ignore_eos": True, "max_tokens": 4, **body}
    headers = {"content-type": "application/json"}
    return EngineRequest(request_id="r1", path=path, body=json.dumps(whole).encode(), headers=headers)


async def load(engine: LlamaCppEngine) -> LoadReport:
    report = await engine.load()
    assert report is not None
    return report


async def idle(engine: LlamaCppEngine) -> None:
    async with asyncio.timeout(60):
        while (await load(engine)).running:
            await asyncio.sleep(0.01)


async def generated_tokens(engine: LlamaCppEngine) -> float:
    lines = (await engine.metrics_page()).splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("llamacpp:tokens_predicted_total"))


async def test_split_slots_and_no_metrics(tmp_path: Any, session: aiohttp.ClientSession) -> None:
    """Each slot has a part of the context, and it tells of no more; the load comes from the slots alone."""
    with llamacpp(LlamaCppSetup(unified=False, metrics=False), tmp_path) as server:
        engine = LlamaCppEngine(server.url, session, OPTIONS)
        info = await engine.probe()
        assert info.max_running == 4
        assert info.kv_tokens == info.max_model_tokens == SETUP.context_tokens // 4
        assert await engine.metrics_page() == ""
        async with engine.generate(request(prompt=prompt(1), max_tokens=3000, stream=True)) as upstream:
            await anext(aiter(upstream.chunks()))
            seen = await load(engine)
            assert (seen.running, seen.waiting) == (1, 0) and 600 / 4096 <= seen.kv_used_ratio < 1
        await idle(engine)


@pytest.mark.parametrize("stream", [True, False])
async def test_only_a_stream_is_ended_by_leaving_it(engine: LlamaCppEngine, stream: bool) -> None:
    """The counter tells how much was generated after all: of a call that is not streamed, everything."""
    before = await generated_tokens(engine)
    attempt = asyncio.create_task(ask(engine, request(prompt=prompt(900), max_tokens=1500, stream=stream)))
    async with asyncio.timeout(20):
        while not (await load(engine)).running:
            await asyncio.sleep(0.005)
    attempt.cancel()
    await asyncio.gather(attempt, return_exceptions=True)
    await idle(engine)
    generated = await generated_tokens(engine) - before
    assert generated < 1000 if stream else generated == 1500


def gateway_config(server: LlamaCppServer, **more: Any) -> ServeConfig:
    return ServeConfig(server=ServerConfig(port=0), workers=(WorkerConfig(url=server.url, name="w0"),), **more)


async def settled(gateway: Gateway) -> None:
    await until(lambda: gateway.driver.open_calls() == 0)
    gateway.fabric.check_invariants()


async def test_the_gateway_hears_of_warmth_from_streams_without_usage(server: LlamaCppServer) -> None:
    messages = [{"role": "user", "content": "the first turn " + "baceni dofugu " * 300}]
    async with running_gateway(gateway_config(server)) as gateway, aiohttp.ClientSession() as client:
        cached = []
        for turn in range(3):
            body = {"model": MODEL_NAME, "messages": messages, "max_tokens": 20, "ignore_eos": True, "stream": True}
            async with client.post(gateway.url + "/v1/chat/completions", json=body) as response:
                assert response.status == 200
                assert b'"usage"' not in await response.read()
                assert (int(response.headers["x-amf-warm-tokens"]) > 300) == (turn > 0)
            await settled(gateway)
            totals = gateway.fabric.totals()
            cached.append(totals["cached_tokens"])
            messages += [
                {"role": "assistant", "content": f"answer {turn}"},
                {"role": "user", "content": f"next {turn}"},
            ]
        assert cached[0] < 100 and cached[1] - cached[0] > 300 and cached[2] - cached[1] > 300


async def test_the_gateway_sends_no_more_than_the_slots_share(tmp_path: Any, session: aiohttp.ClientSession) -> None:
    """Calls of 1500 tokens each, on a context of 4096. Sent at once they fail together; held, they all end well."""
    attempts = [request(prompt=prompt(101 * n, 1500), max_tokens=200) for n in range(4)]

    async def status(url: str, attempt: EngineRequest) -> int:
        async with session.post(url + attempt.path, data=attempt.body, headers=attempt.headers) as response:
            await response.read()
            return response.status

    with llamacpp(LlamaCppSetup(context_tokens=4096), tmp_path) as server:
        alone = await asyncio.gather(*(status(server.url, attempt) for attempt in attempts))
        assert alone.count(500) > 1
        async with running_gateway(gateway_config(server)) as gateway:
            assert await asyncio.gather(*(status(gateway.url, attempt) for attempt in attempts)) == [200] * 4
            await settled(gateway)
            assert gateway.fabric.totals()["retried"] == 0


async def test_its_tokenizer_speaks_another_dialect_and_the_gateway_stays_in_text_mode(server: LlamaCppServer) -> None:
    config = gateway_config(server, pools={MODEL_NAME: PoolConfig(tokenizer="engine")})
    async with running_gateway(config) as gateway, aiohttp.ClientSession() as client:
        body = {"model": MODEL_NAME, "messages": [{"role": "user", "content": "hello " * 50}], "max_tokens": 3}
        for _ in range(2):
            async with client.post(gateway.url + "/v1/chat/completions", json=body) as response:
                assert response.status == 200
        await settled(gateway)
        assert gateway.fabric.totals()["cached_tokens"] > 100

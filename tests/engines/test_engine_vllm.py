"""What the vLLM adapter adds: the probe, priorities, sessions, and observation through an engine's death and return."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from engine_fakes import METRICS, FakeVllm, port_of, publishing, raw_server, removed, serving, stored, then_silent
from hypothesis import example, given
from hypothesis import strategies as st

from amf.engines.choose import connect
from amf.engines.engine import (
    BlocksRemoved,
    BlocksStored,
    CacheCleared,
    Capabilities,
    EngineError,
    EngineInfo,
    EngineRequest,
    LoadReport,
    Observation,
)
from amf.engines.kvfeed import KvSource
from amf.engines.metrics import Sample, SampleReader
from amf.engines.openai import OpenAIEngine
from amf.engines.options import EngineLimits, EngineOptions
from amf.engines.vllm import MAX_PRIORITY, VllmEngine, priority

EAGER = EngineLimits(observe_interval_s=0.02, discover_interval_s=0.1, reconnect_max_s=0.1, control_timeout_s=5.0)
LOAD = LoadReport(running=4, waiting=2, kv_used_ratio=0.375)


def vllm(url: str, session: aiohttp.ClientSession, **options: Any) -> VllmEngine:
    return VllmEngine(url, session, EngineOptions(limits=EAGER, **options))


@given(st.floats(), st.floats())
@example(math.inf, -math.inf)
@example(1e308, 1e300)
def test_lower_urgency_is_served_sooner(left_s: float, right_s: float) -> None:
    if not math.isnan(left_s) and not math.isnan(right_s):
        assert (priority(left_s) <= priority(right_s)) or left_s > right_s
        if left_s <= right_s - 0.002 and abs(left_s) < 1e6 and abs(right_s) < 1e6:
            assert priority(left_s) < priority(right_s)
    assert all(isinstance(priority(s), int) and abs(priority(s)) <= MAX_PRIORITY for s in (left_s, right_s))


def test_priorities_are_milliseconds_and_no_number_comes_last() -> None:
    assert [priority(s) for s in (-1.5, 0.0, 0.25, 60.0)] == [-1500, 0, 250, 60_000]
    assert priority(math.nan) == priority(math.inf) == MAX_PRIORITY
    assert priority(-math.inf) == -MAX_PRIORITY


async def sent_headers(session: aiohttp.ClientSession, request: EngineRequest, **options: Any) -> dict[str, str]:
    seen: dict[str, str] = {}

    async def handler(received: web.Request) -> web.Response:
        seen.update((name.lower(), value) for name, value in received.headers.items())
        return web.Response()

    app = web.Application()
    app.router.add_post("/v1/completions", handler)
    async with serving(app) as url, vllm(url, session, **options).generate(request) as upstream:
        assert upstream.status == 200
    return seen


async def test_urgency_and_session_become_headers(session: aiohttp.ClientSession) -> None:
    request = EngineRequest(
        request_id="r\n7",
        path="/v1/completions",
        body=b"{}",
        headers={"X-Vllm-Priority": "-999", "X-Session-ID": "theirs"},
        urgency_s=-0.25,
        session_id="run/é 1\r\nX-Evil: 1",
    )
    seen = await sent_headers(session, request, priority=True)
    assert seen["x-vllm-priority"] == "-250"
    assert seen["x-session-id"] == "run/%C3%A9 1%0D%0AX-Evil: 1"
    assert seen["x-request-id"] == "r%0A7"
    assert "x-vllm-priority" not in await sent_headers(session, request)


async def test_probe_tells_all_that_the_engine_tells(session: aiohttp.ClientSession) -> None:
    async with publishing() as publisher, serving(FakeVllm(publisher).app()) as url:
        engine = vllm(url, session, priority=True)
        assert await engine.probe() == EngineInfo(
            engine="vllm",
            models=("tiny",),
            version="0.32.0",
            block_tokens=32,
            kv_tokens=524256,
            max_model_tokens=16384,
            capabilities=Capabilities(
                kv_events=True,
                token_hashes=True,
                attributed_events=True,
                priority="lower-first",
                token_prompts=True,
                tokenize=True,
            ),
        )
        assert await engine.kv_sources() == (
            KvSource(endpoint=publisher.endpoint, replay_endpoint=publisher.replay_endpoint),
        )


@pytest.mark.parametrize(
    ("labels", "block_tokens", "kv_tokens"),
    [
        ('block_size="16",num_gpu_blocks="100"', 16, 1584),
        ('block_size="16",num_gpu_blocks="None"', 16, None),
        ('block_size="auto",kv_cache_size_tokens="x"', None, None),
        ("", None, None),
    ],
)
async def test_probe_of_an_engine_that_tells_less(
    session: aiohttp.ClientSession, labels: str, block_tokens: int | None, kv_tokens: int | None
) -> None:
    fake = FakeVllm()
    fake.metrics = f"vllm:cache_config_info{{{labels}}} 1.0\n"
    async with serving(fake.app()) as url:
        info = await vllm(url, session).probe()
    assert (info.block_tokens, info.kv_tokens) == (block_tokens, kv_tokens)
    assert info.capabilities == Capabilities(token_prompts=True, tokenize=True)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (None, []),
        ({"0": 7, "1": {}, "2": {"endpoint": 5}, "3": {"endpoint": "inproc://x"}}, []),
        ({"0": {"endpoint": "tcp://*:1", "enable_kv_cache_events": False}}, []),
        ({"0": {"endpoint": "tcp://*:1", "publisher": "null"}}, []),
        ({"0": {"endpoint": "tcp://0.0.0.0:1"}, "1": {"endpoint": "tcp://[::]:2"}}, ["1", "2"]),
        ({"0": {"endpoint": "tcp://:::1"}, "1": {"endpoint": "tcp://:::1"}}, ["1"]),
    ],
)
async def test_event_sources(session: aiohttp.ClientSession, told: Any, expected: list[str]) -> None:
    fake = FakeVllm()
    fake.sources = told
    async with serving(fake.app()) as url:
        sources = await vllm(url, session).kv_sources()
        assert list(sources) == [KvSource(endpoint=f"tcp://127.0.0.1:{port}") for port in expected]
        engine = vllm(url, session, kv_events_endpoint="tcp://a:1", kv_replay_endpoint="tcp://a:2")
        assert await engine.kv_sources() == (KvSource(endpoint="tcp://a:1", replay_endpoint="tcp://a:2"),)


def test_metrics_are_read_through_noise() -> None:
    page = (
        'a{x="1}",y="a\\"b\\\\\\n"} 1.5 1700000000\n'
        "a 2\n  a 3\n#a 4\nab 5\na{broken 6\na nonsense\na{} +Inf\nnot a line at all\n\0\n"
    )
    assert list(SampleReader(("a",)).read(page)) == [
        Sample("a", {"x": "1}", "y": 'a"b\\\n'}, 1.5),
        Sample("a", {}, 2.0),
        Sample("a", {}, math.inf),
    ]


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        (METRICS, LOAD),
        ("", None),
        ("vllm:num_requests_running NaN\n", None),
        (
            "vllm:num_requests_running 1\nvllm:gpu_cache_usage_perc 1.5\n",
            LoadReport(running=1, waiting=0, kv_used_ratio=1),
        ),
    ],
)
async def test_load(session: aiohttp.ClientSession, page: str, expected: LoadReport | None) -> None:
    fake = FakeVllm()
    fake.metrics = page
    async with serving(fake.app()) as url:
        assert await vllm(url, session).load() == expected


@pytest.mark.parametrize(
    ("kind", "owned_by", "metrics", "expected"),
    [
        ("auto", "vllm", "", VllmEngine),
        ("auto", "me", METRICS, VllmEngine),
        ("auto", "me", "llamacpp:requests_processing 1\n", OpenAIEngine),
        ("openai", "vllm", METRICS, OpenAIEngine),
        ("vllm", "me", "", VllmEngine),
    ],
)
async def test_connect_picks_the_adapter(
    session: aiohttp.ClientSession, kind: Any, owned_by: str, metrics: str, expected: type
) -> None:
    fake = FakeVllm()
    fake.owned_by, fake.metrics = owned_by, metrics
    async with serving(fake.app()) as url:
        assert type(await connect(url, session, EngineOptions(kind=kind))) is expected


async def test_connect_to_nothing(session: aiohttp.ClientSession, unused_tcp_port: int) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}"
    with pytest.raises(EngineError, match="no connection"):
        await connect(url, session)
    assert isinstance(await connect(url, session, EngineOptions(kind="openai")), OpenAIEngine)


async def until(observations: AsyncIterator[Observation], wanted: Observation) -> list[Observation]:
    """What is observed up to the wanted observation, loads left out unless wanted."""
    seen = []
    async with asyncio.timeout(15):
        async for observation in observations:
            if observation == wanted:
                return seen
            if not isinstance(observation, LoadReport):
                seen.append(observation)
    raise AssertionError("the observation ended")


def block(name: int) -> BlocksStored:
    return BlocksStored(block_hashes=(name,), parent_hash=None, token_ids=(name,), block_tokens=1)


async def test_load_and_events_are_observed(session: aiohttp.ClientSession) -> None:
    async with publishing() as publisher, serving(FakeVllm(publisher).app()) as url:
        engine = vllm(url, session)
        async with aclosing(engine.observe()) as observations:
            assert await until(observations, LOAD) == []
            await asyncio.wait_for(publisher.subscribed(), 10)
            await publisher.send(stored([1], [1]), removed(1))
            assert await until(observations, BlocksRemoved(block_hashes=(1,))) == [block(1)]
            await until(observations, LOAD)


async def test_observation_survives_death_and_return(session: aiohttp.ClientSession, unused_tcp_port: int) -> None:
    """First there is no engine; then one; it dies, returns on the same port and publishes its events elsewhere."""
    engine = vllm(f"http://127.0.0.1:{unused_tcp_port}", session)
    async with aclosing(engine.observe()) as observations:
        first_load = asyncio.create_task(until(observations, LOAD))
        await asyncio.sleep(0.1)
        async with publishing() as publisher, serving(FakeVllm(publisher).app(), unused_tcp_port):
            assert await first_load == []
            await asyncio.wait_for(publisher.subscribed(), 10)
            await publisher.send(stored([1], [1]))
            assert await until(observations, block(1)) == []
        async with publishing() as publisher, serving(FakeVllm(publisher).app(), unused_tcp_port):
            moved = CacheCleared(reason="the engine publishes its events elsewhere now")
            assert await until(observations, moved) == []
            await asyncio.wait_for(publisher.subscribed(), 10)
            await publisher.send(stored([2], [2]))
            assert await until(observations, block(2)) == []
    await engine.close()


async def test_a_return_on_the_same_ports_is_a_restart(session: aiohttp.ClientSession, unused_tcp_port: int) -> None:
    engine = vllm(f"http://127.0.0.1:{unused_tcp_port}", session)
    async with aclosing(engine.observe()) as observations:
        async with AsyncExitStack() as life:
            publisher = await life.enter_async_context(publishing())
            await life.enter_async_context(serving(FakeVllm(publisher).app(), unused_tcp_port))
            await until(observations, LOAD)
            await asyncio.wait_for(publisher.subscribed(), 10)
            await publisher.send(stored([1], [1]))
            await publisher.send(stored([2], [2]))
            assert await until(observations, block(2)) == [block(1)]
        ports = port_of(publisher.endpoint), port_of(publisher.replay_endpoint)
        async with publishing("maps", *ports) as second, serving(FakeVllm(second).app(), unused_tcp_port):
            await asyncio.wait_for(second.subscribed(), 10)
            await second.send(stored([3], [3]))
            assert await until(observations, block(3)) == [CacheCleared(reason="the engine restarted")]


async def test_a_reader_that_falls_behind_loses_nothing(session: aiohttp.ClientSession) -> None:
    async with publishing() as publisher, serving(FakeVllm(publisher).app()) as url:
        limits = EngineLimits(observe_interval_s=0.02, observation_queue_size=2)
        engine = VllmEngine(url, session, EngineOptions(limits=limits))
        async with aclosing(engine.observe()) as observations:
            await until(observations, LOAD)
            await asyncio.wait_for(publisher.subscribed(), 10)
            for name in range(200):
                await publisher.send(stored([name], [name]))
            assert await until(observations, block(199)) == [block(name) for name in range(199)]


async def test_an_unusable_event_endpoint_leaves_the_load(session: aiohttp.ClientSession, caplog: Any) -> None:
    async with serving(FakeVllm().app()) as url:
        engine = vllm(url, session, kv_events_endpoint="tcp://nonsense")
        async with aclosing(engine.observe()) as observations:
            await until(observations, LOAD)
            await until(observations, LOAD)
    assert "tcp://nonsense" in caplog.text


async def test_an_engine_without_metrics_is_observed_in_silence(session: aiohttp.ClientSession) -> None:
    """An engine whose control endpoints hang must neither end observation nor make up a load."""
    async with raw_server(then_silent(b"HTTP/1.1 200 OK\r\n")) as url:
        limits = EngineLimits(control_timeout_s=0.05, observe_interval_s=0.01, reconnect_max_s=0.02)
        engine = VllmEngine(url, session, EngineOptions(limits=limits))
        watching = asyncio.ensure_future(anext(engine.observe(), None))
        done, _ = await asyncio.wait([watching], timeout=0.5)
        assert not done
        await engine.close()
        assert await asyncio.wait_for(watching, 5) is None

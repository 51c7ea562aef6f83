"""What the SGLang adapter adds: what it asks the server, what it puts into a body, calls aborted by id, load and events.

Against a stand-in (sglang_fake.py), so what is shown is that the adapter does right by SGLang's wire format as documented."""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from engine_fakes import FakeVllm, cleared, publishing, removed, serving, stored
from fake_sglang import METRICS, RANK_LOAD, FakeSglang
from hypothesis import example, given
from hypothesis import strategies as st

from amf.config import ServeConfig, ServerConfig, WorkerConfig
from amf.core.types import Tier
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
from amf.engines.openai import OpenAIEngine
from amf.engines.options import EngineLimits, EngineOptions
from amf.engines.sglang import MAX_PRIORITY, SglangEngine, priority
from amf.engines.sglang_server import SglangServer, of_ranks
from amf.engines.vllm import VllmEngine
from amf.gateway.link import _tier
from amf.gateway.service import running_gateway

EAGER = EngineLimits(observe_interval_s=0.02, discover_interval_s=0.1, reconnect_max_s=0.1, control_timeout_s=5.0)
LOAD = LoadReport(running=3, waiting=2, kv_used_ratio=0.5)
CAN = Capabilities(priority="higher-first", token_prompts=True, tokenize=True)


def sglang(url: str, session: aiohttp.ClientSession, **options: Any) -> SglangEngine:
    return SglangEngine(url, session, EngineOptions(limits=EAGER, **options))


def call(body: bytes = b'{"prompt": [1]}', path: str = "/v1/completions", **more: Any) -> EngineRequest:
    return EngineRequest(body=body, path=path, **({"request_id": "req-1", "headers": {}} | more))


async def answer(engine: SglangEngine, request: EngineRequest) -> int:
    async with engine.generate(request) as upstream:
        async for _ in upstream.chunks():
            pass
        return upstream.status


# --- urgency --------------------------------------------------------------------------------------------------------------


@given(st.floats(allow_nan=False), st.floats(allow_nan=False), st.sampled_from(["lower-first", "higher-first"]))
@example(math.inf, -math.inf, "higher-first")
@example(1e308, 1e300, "lower-first")
def test_the_more_urgent_never_comes_later(left_s: float, right_s: float, order: Any) -> None:
    sooner, later = sorted((left_s, right_s))
    sign = 1 if order == "lower-first" else -1  # by SGLang's own sort: the smaller product is served first
    assert sign * priority(sooner, order) <= sign * priority(later, order)
    assert abs(priority(sooner, order)) <= MAX_PRIORITY
    if later - sooner > 0.11 and max(abs(sooner), abs(later)) < 1e6:
        assert sign * priority(sooner, order) < sign * priority(later, order)


def test_priorities_are_tenths_of_a_second_in_the_servers_direction() -> None:
    seconds = (-1.5, 0.0, 0.25, 60.0, math.nan, math.inf, -math.inf)
    expected = [-15, 0, 2, 600, MAX_PRIORITY, MAX_PRIORITY, -MAX_PRIORITY]
    assert [priority(s, "lower-first") for s in seconds] == expected
    assert [priority(s, "higher-first") for s in seconds] == [-steps for steps in expected]


@pytest.mark.parametrize(
    ("told", "unasked", "insisted"),
    [
        ({}, "none", "higher-first"),
        ({"enable_priority_scheduling": "yes"}, "none", "higher-first"),
        ({"enable_priority_scheduling": False}, "none", "none"),
        ({"enable_priority_scheduling": True}, "higher-first", "higher-first"),
        (
            {"enable_priority_scheduling": True, "schedule_low_priority_values_first": True},
            "lower-first",
            "lower-first",
        ),
        ({"enable_priority_scheduling": True, "enable_metrics": True}, "none", "higher-first"),
        ({"enable_priority_scheduling": True, "radix_eviction_policy": "priority"}, "none", "higher-first"),
    ],
)
def test_when_priorities_are_sent(told: dict[str, Any], unasked: str, insisted: str) -> None:
    assert (SglangServer(told).priority(False), SglangServer(told).priority(True)) == (unasked, insisted)


# --- what goes into a body ------------------------------------------------------------------------------------------------


async def sent(session: aiohttp.ClientSession, request: EngineRequest, **told: Any) -> bytes:
    fake = FakeSglang()
    fake.server_info |= told
    async with serving(fake.app()) as url:
        engine = sglang(url, session)
        await engine.probe()
        assert await answer(engine, request) == 200
    return fake.bodies[0]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_urgency_session_and_id_are_put_behind_the_clients_bytes(session: Any, path: str) -> None:
    body = '{"x": "é\\u0000",  "n":1e3, "priority": 99}\n'.encode()
    seen = await sent(session, call(body, path, urgency_s=-0.25, session_id="run/é 1"))
    assert seen == body[:-2] + b',"priority":3,"rid":"req-1.","session_id":"run/%C3%A9 1"}'
    seen = await sent(session, call(body, path, urgency_s=-0.25), schedule_low_priority_values_first=True)
    assert seen == body[:-2] + b',"priority":-3,"rid":"req-1."}'


async def test_a_server_that_does_not_schedule_by_priority_is_sent_none(session: Any) -> None:
    assert await sent(session, call(b"{}"), enable_priority_scheduling=False) == b'{"rid":"req-1."}'


async def test_what_a_route_does_not_take_is_not_sent(session: Any) -> None:
    body = b'{"input": "a"}'
    assert await sent(session, call(body, "/v1/embeddings", urgency_s=1.0)) == b'{"input": "a","priority":-10}'
    assert await sent(session, call(body, "/v1/rerank", urgency_s=1.0, session_id="s")) == body


async def test_a_clients_own_engine_session_and_id_stay(session: Any) -> None:
    body = b'{"rid":"mine","session_params":{"id":"s1"}}'
    assert await sent(session, call(body, session_id="run"), enable_priority_scheduling=False) == body
    quoted = json.dumps({"prompt": '"rid" and "session_params"'}).encode()
    seen = json.loads(await sent(session, call(quoted, session_id="run")))
    assert (seen["rid"], seen["session_id"]) == ("req-1.", "run")


async def test_a_cache_that_remembers_sessions_is_told_of_none(session: Any) -> None:
    seen = await sent(session, call(session_id="run"), enable_session_radix_cache=True)
    assert b"session_id" not in seen


async def test_what_is_no_object_passes_untouched(session: Any) -> None:
    assert await sent(session, call(b"[1, 2]")) == b"[1, 2]"


async def test_clients_cannot_override_through_headers(session: Any) -> None:
    seen: dict[str, str] = {}

    async def handler(request: web.Request) -> web.Response:
        seen.update(request.headers)
        return web.Response()

    app = web.Application()
    app.router.add_post("/v1/completions", handler)
    async with serving(app) as url:
        await answer(
            sglang(url, session), call(headers={"X-Override-Priority": "9", "x-override-rid": "r", "X-Mine": "1"})
        )
    assert "X-Mine" in seen and not any(name.lower().startswith("x-override-") for name in seen)


# --- cancel ---------------------------------------------------------------------------------------------------------------


async def until_aborted(fake: FakeSglang) -> list[dict[str, Any]]:
    async with asyncio.timeout(5):
        while not fake.aborted:
            await asyncio.sleep(0.01)
    return fake.aborted


async def test_leaving_a_stream_aborts_the_call_by_its_id(session: Any) -> None:
    fake = FakeSglang()
    fake.hang = True
    async with serving(fake.app()) as url:
        async with sglang(url, session).generate(call()) as upstream:
            assert await anext(aiter(upstream.chunks())) == b"data: {}\n\n"
        assert await until_aborted(fake) == [{"rid": json.loads(fake.bodies[0])["rid"]}]


async def test_a_call_cancelled_before_its_answer_is_aborted_too(session: Any) -> None:
    arrived, aborted = asyncio.Event(), asyncio.Event()

    async def hang(request: web.Request) -> web.Response:
        arrived.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def abort(request: web.Request) -> web.Response:
        assert await request.json() == {"rid": "req-1."}
        aborted.set()
        return web.Response()

    app = web.Application()
    app.router.add_post("/v1/completions", hang)
    app.router.add_post("/abort_request", abort)
    async with serving(app) as url:
        attempt = asyncio.create_task(answer(sglang(url, session), call()))
        await asyncio.wait_for(arrived.wait(), 5)
        attempt.cancel()
        await asyncio.wait_for(aborted.wait(), 5)


async def test_a_whole_answer_is_not_aborted_and_an_embedding_has_no_id(session: Any) -> None:
    fake = FakeSglang()
    async with serving(fake.app()) as url:
        engine = sglang(url, session)
        await answer(engine, call())
        async with engine.generate(call()):
            pass  # all of it has arrived, though nobody read it
        fake.hang = True
        async with engine.generate(call(path="/v1/embeddings")):
            pass
        await engine.get("/health")  # what was sent before it has arrived
        assert (fake.aborted, engine._aborts) == ([], set())


def test_a_second_attempts_id_does_not_begin_with_the_firsts() -> None:
    """SGLang aborts what begins with the id it is given, and a second attempt is called `ID-2`."""
    first, second = (
        json.loads(SglangEngine("http://x", None, EngineOptions())._attempt_body(call(request_id=name)))["rid"]  # type: ignore[arg-type]
        for name in ("req-1", "req-1-2")
    )
    assert not second.startswith(first)


# --- what the server says -------------------------------------------------------------------------------------------------


async def test_probe_tells_all_that_the_server_tells(session: aiohttp.ClientSession) -> None:
    async with publishing() as publisher, serving(FakeSglang(publisher).app()) as url:
        engine = sglang(url, session)
        assert await engine.probe() == EngineInfo(
            engine="sglang",
            models=("tiny", "tuned"),
            version="0.5.23",
            block_tokens=16,
            kv_tokens=16384,
            max_model_tokens=16384,
            max_running=2048,
            capabilities=replace(CAN, kv_events=True, token_hashes=True, attributed_events=True),
        )
        assert await engine.kv_sources() == (
            KvSource(endpoint=publisher.endpoint, replay_endpoint=publisher.replay_endpoint, copies=False),
        )


async def probed(session: aiohttp.ClientSession, fake: FakeSglang, **options: Any) -> EngineInfo:
    async with serving(fake.app()) as url:
        return await sglang(url, session, **options).probe()


async def test_a_server_started_with_more_tells_more(session: aiohttp.ClientSession) -> None:
    fake = FakeSglang()
    fake.server_info |= {
        "attn_dp_size": 4,
        "internal_states": [{"effective_max_running_requests_per_dp": 8}] * 4,
        "enable_lora": True,
        "enable_hierarchical_cache": True,
        "hicache_storage_backend": "file",
        "enable_session_radix_cache": True,
        "schedule_low_priority_values_first": True,
    }
    info = await probed(session, fake)
    assert (info.kv_tokens, info.max_running) == (4 * 16384, 32)
    assert info.capabilities == replace(
        CAN, priority="lower-first", release=True, tiers=("dram", "disk"), lora=True, ranks=4
    )
    fake.server_info["hicache_storage_backend"] = None
    assert (await probed(session, fake)).capabilities.tiers == ("dram",)


async def test_an_old_server_is_asked_under_the_old_name_and_its_metrics_for_the_rest(session: Any) -> None:
    fake = FakeSglang()
    fake.server_info["kv_events_config"] = (
        '{"publisher":"zmq","endpoint":"tcp://*:7000","replay_endpoint":"tcp://*:7100"}'
    )
    fake.server_info["dp_size"] = 2
    fake.be_old()
    async with serving(fake.app()) as url:
        engine = sglang(url, session)
        info = await engine.probe()
        assert (info.version, info.block_tokens, info.kv_tokens) == ("0.4.9", 16, 2 * 16384)
        assert not info.capabilities.attributed_events
        assert info.capabilities == Capabilities(kv_events=True, token_hashes=True, token_prompts=True, ranks=2)
        assert await engine.kv_sources() == tuple(
            KvSource(
                endpoint=f"tcp://127.0.0.1:{7000 + r}",
                replay_endpoint=f"tcp://127.0.0.1:{7100 + r}",
                copies=False,
                siblings=True,
            )
            for r in range(2)
        )
        assert await engine.load() == LoadReport(running=4, waiting=2, kv_used_ratio=0.375)


async def test_a_server_that_says_nothing_of_itself(session: aiohttp.ClientSession) -> None:
    fake = FakeSglang()
    fake.server_info = fake.loads = None
    fake.tokenize = False
    async with serving(fake.app()) as url:
        engine = sglang(url, session)
        info = await engine.probe()
        assert (info.version, info.block_tokens, info.kv_tokens) == (None, None, None)
        assert info.capabilities == Capabilities(token_prompts=True)
        assert (await engine.kv_sources(), await engine.load()) == ((), None)
    fake.metrics = METRICS
    info = await probed(session, fake)
    assert (info.block_tokens, info.kv_tokens) == (64, 2000)
    fake.metrics = "sglang:page_size NaN\nsglang:max_total_num_tokens +Inf\n"
    info = await probed(session, fake)
    assert (info.block_tokens, info.kv_tokens) == (None, None)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, None),
        ({"max_running_requests": 64}, 64),
        ({"max_running_requests": 64, "internal_states": [{}, 7]}, 64),
        ({"max_running_requests": 64, "internal_states": [{"effective_max_running_requests_per_dp": 30}] * 2}, 60),
    ],
)
def test_calls_at_once(told: dict[str, Any], expected: int | None) -> None:
    assert SglangServer(told).max_running == expected


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"version": "0.5.23"}, True),
        ({"version": "0.6.0.post1"}, True),
        ({"version": "0.5.12"}, False),
        ({"version": "main"}, False),
        ({}, False),
        ({"version": "0.5.23", "enable_session_radix_cache": True}, False),
        ({"version": "0.5.23", "enable_flexkv": True}, False),
    ],
)
def test_whose_events_name_the_call(told: dict[str, Any], expected: bool) -> None:
    assert SglangServer(told).names_requests is expected


@pytest.mark.parametrize("nonsense", [[], "x", {"kv_events": 7, "page_size": "auto", "max_total_num_tokens": True}])
async def test_nonsense_counts_as_not_said(session: aiohttp.ClientSession, nonsense: Any) -> None:
    fake = FakeSglang()
    fake.server_info = nonsense
    info = await probed(session, fake)
    assert (info.block_tokens, info.kv_tokens, info.version) == (None, None, None)
    assert info.capabilities == Capabilities(token_prompts=True, tokenize=True)


async def test_a_server_that_cannot_say_just_now_is_believed_to_be_what_it_was(session: aiohttp.ClientSession) -> None:
    fake = FakeSglang()
    fake.server_info["schedule_low_priority_values_first"] = True
    async with serving(fake.app()) as url:
        engine = sglang(url, session)
        await engine.probe()
        fake.server_info = 500
        assert (await engine.probe()).capabilities.priority == "lower-first"
        fake.server_info = None  # another server, which has no such endpoint
        assert (await engine.probe()).capabilities.priority == "none"


async def test_harm_that_the_user_asked_for_is_warned_of(session: aiohttp.ClientSession, caplog: Any) -> None:
    fake = FakeSglang()
    fake.server_info["enable_metrics"] = True
    assert (await probed(session, fake, priority=True)).capabilities.priority == "higher-first"
    assert "--enable-metrics" in caplog.text


@pytest.mark.parametrize(
    "told", [{"disable_radix_cache": True}, {"speculative_algorithm": "EAGLE3"}, {"speculative_algorithm": "NEXTN"}]
)
async def test_events_that_name_no_blocks_are_not_followed(session: aiohttp.ClientSession, told: Any) -> None:
    async with publishing() as publisher:
        fake = FakeSglang(publisher)
        fake.server_info |= told
        async with serving(fake.app()) as url:
            assert (await sglang(url, session).probe()).capabilities == CAN
            engine = sglang(url, session, kv_events_endpoint="tcp://a:1")
            assert await engine.kv_sources() == ()


EVENTS = {"publisher": "zmq", "endpoint_host": "0.0.0.0", "endpoint_port_base": 70, "dp_size": 2, "block_size": 32}


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"kv_events": EVENTS}, ["tcp://127.0.0.1:70", "tcp://127.0.0.1:71"]),
        ({"kv_events": {**EVENTS, "endpoint_host": "[::]", "dp_size": 1}}, ["tcp://127.0.0.1:70"]),
        ({"kv_events": {**EVENTS, "endpoint_host": "10.0.0.7"}}, ["tcp://10.0.0.7:70", "tcp://10.0.0.7:71"]),
        ({"kv_events": {**EVENTS, "publisher": "null"}}, []),
        ({"kv_events": {**EVENTS, "endpoint_port_base": "70"}}, []),
        ({"kv_events": None, "kv_events_config": '{"publisher":"zmq"}'}, []),
        ({"kv_events_config": '{"publisher":"zmq"}'}, ["tcp://127.0.0.1:5557"]),
        ({"kv_events_config": '{"endpoint":"tcp://*:9"}'}, []),
        ({"kv_events_config": "{"}, []),
        ({"kv_events_config": "[]"}, []),
        ({"kv_events_config": '{"publisher":"zmq","endpoint":"inproc://x"}'}, []),
    ],
)
async def test_event_sources(session: aiohttp.ClientSession, told: Any, expected: list[str]) -> None:
    fake = FakeSglang()
    fake.server_info = told
    async with serving(fake.app()) as url:
        assert [source.endpoint for source in await sglang(url, session).kv_sources()] == expected


async def test_configured_addresses_are_the_first_ranks(session: aiohttp.ClientSession) -> None:
    fake = FakeSglang()
    fake.server_info = {"kv_events": EVENTS}
    async with serving(fake.app()) as url:
        both = sglang(url, session, kv_events_endpoint="tcp://a:1", kv_replay_endpoint="tcp://a:11")
        assert await both.kv_sources() == tuple(
            KvSource(endpoint=f"tcp://a:{1 + r}", replay_endpoint=f"tcp://a:{11 + r}", copies=False, siblings=True)
            for r in range(2)
        )
        replay = sglang(url, session, kv_replay_endpoint="tcp://a:11")
        assert [source.replay_endpoint for source in await replay.kv_sources()] == ["tcp://a:11", "tcp://a:12"]


def test_an_address_without_a_port_serves_one_rank() -> None:
    assert of_ranks("ipc:///tmp/x", None, 3) == (("ipc:///tmp/x", None),)
    assert of_ranks(None, "tcp://a:1", 3) == ()


# --- load and detection ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loads", "metrics", "expected"),
    [
        ({"loads": [RANK_LOAD]}, METRICS, LOAD),
        (
            {"loads": [RANK_LOAD, {"num_running_reqs": 1, "num_waiting_reqs": 0, "token_usage": 0.25}]},
            None,
            LoadReport(running=4, waiting=2, kv_used_ratio=0.375),
        ),
        ({"loads": []}, METRICS, None),
        ({"loads": [{"num_running_reqs": "many"}]}, METRICS, LoadReport(running=4, waiting=2, kv_used_ratio=0.375)),
        (b'{"x":' + b"[" * 100_000, METRICS, LoadReport(running=4, waiting=2, kv_used_ratio=0.375)),
        (None, METRICS, LoadReport(running=4, waiting=2, kv_used_ratio=0.375)),
        (None, "sglang:num_running_reqs 1\n", LoadReport(running=1, waiting=0, kv_used_ratio=0.0)),
        (None, "sglang:num_running_reqs NaN\n", None),
        (None, None, None),
        (503, METRICS, None),
    ],
)
async def test_load(
    session: aiohttp.ClientSession, loads: Any, metrics: str | None, expected: LoadReport | None
) -> None:
    fake = FakeSglang()
    fake.loads, fake.metrics = loads, metrics
    async with serving(fake.app()) as url:
        assert await sglang(url, session).load() == expected


async def test_where_load_is_told_is_found_once_and_again_with_each_probe(session: aiohttp.ClientSession) -> None:
    fake = FakeSglang()
    there, fake.loads = fake.loads, None
    async with serving(fake.app()) as url:
        engine = sglang(url, session)
        assert await engine.load() is None
        fake.loads = there
        assert await engine.load() is None
        await engine.probe()
        assert await engine.load() == LOAD


@pytest.mark.parametrize(
    ("kind", "owned_by", "metrics", "expected"),
    [
        ("auto", "sglang", None, SglangEngine),
        ("auto", "me", METRICS, SglangEngine),
        ("auto", "me", "llamacpp:requests_processing 1\n", OpenAIEngine),
        ("openai", "sglang", METRICS, OpenAIEngine),
        ("sglang", "me", None, SglangEngine),
    ],
)
async def test_connect_picks_the_adapter(
    session: aiohttp.ClientSession, kind: Any, owned_by: str, metrics: str | None, expected: type
) -> None:
    fake = FakeSglang()
    fake.owned_by, fake.metrics = owned_by, metrics
    async with serving(fake.app()) as url:
        assert type(await connect(url, session, EngineOptions(kind=kind))) is expected


async def test_a_vllm_is_not_taken_for_one(session: aiohttp.ClientSession) -> None:
    async with serving(FakeVllm().app()) as url:
        assert type(await connect(url, session)) is VllmEngine
        assert not await SglangEngine.recognises(sglang(url, session))


async def test_an_absent_server_is_not_recognised_but_reported(session: Any, unused_tcp_port: int) -> None:
    with pytest.raises(EngineError, match="no connection"):
        await SglangEngine.recognises(sglang(f"http://127.0.0.1:{unused_tcp_port}", session))


# --- events ---------------------------------------------------------------------------------------------------------------


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


def block(name: int, medium: str = "GPU", **more: Any) -> BlocksStored:
    return BlocksStored(block_hashes=(name,), parent_hash=None, token_ids=(1, 2), block_tokens=2, medium=medium, **more)


@pytest.mark.parametrize("encoding", ["maps", "arrays"])
async def test_events_in_sglangs_shapes(session: aiohttp.ClientSession, encoding: str) -> None:
    """Signed hashes, its names of media, a set that repeats itself, a first batch with any number, a reset told at once, token
    pairs and adapters without a name left out."""
    reset = CacheCleared(reason="the engine reset its cache")
    async with publishing(encoding) as publisher, serving(FakeSglang(publisher).app()) as url:
        publisher.number = 2  # what the server's own warm-up took, and its replay buffer lost
        engine = sglang(url, session)
        async with aclosing(engine.observe()) as observations:
            await until(observations, LOAD)
            await asyncio.wait_for(publisher.subscribed(), 10)
            await publisher.send(stored([-(2**63)], [1, 2]), stored([-(2**63)], [1, 2]))
            await publisher.send(stored([-(2**63)], [1, 2], medium="CPU_PINNED"), removed(-(2**63)), removed(-(2**63)))
            await publisher.send(stored([7], [(1, 2), (2, 3)]), stored([8], [1, 2], lora_id=3))
            await publisher.send(cleared())
            await publisher.send(stored([-5], [1, 2]))
            assert await until(observations, block(-5)) == [
                block(-(2**63)),
                block(-(2**63), "CPU_PINNED"),
                BlocksRemoved(block_hashes=(-(2**63),)),
                reset,
            ]


async def test_salt_and_session_are_read_from_the_event(session: aiohttp.ClientSession) -> None:
    async with (
        publishing() as publisher,
        serving(FakeSglang(publisher).app()) as url,
        aclosing(sglang(url, session).observe()) as observations,
    ):
        await until(observations, LOAD)
        await asyncio.wait_for(publisher.subscribed(), 10)
        await publisher.send(stored([-5], [1, 2], cache_salt="t", session_id="run%2F1", lora_id=None))
        await until(observations, block(-5, cache_salt="t", session_id="run/1"))


async def test_each_rank_has_a_cache_of_its_own(session: aiohttp.ClientSession) -> None:
    """The same block on two ranks is two copies, told twice and removed twice; on one rank it is one."""
    async with publishing() as first, publishing() as second, serving(FakeSglang().app()) as url:
        engine = sglang(url, session)
        sources = tuple(KvSource(endpoint=each.endpoint, copies=False, siblings=True) for each in (first, second))
        engine.kv_sources = lambda: _given(sources)  # type: ignore[method-assign]
        async with aclosing(engine.observe()) as observations:
            await until(observations, LOAD)
            for publisher in (first, second):
                await asyncio.wait_for(publisher.subscribed(), 10)
            await first.send(stored([1], [1, 2]), stored([1], [1, 2]))
            await until(observations, block(1))
            await second.send(cleared(), stored([1], [1, 2]), removed(1), removed(1))
            assert await until(observations, BlocksRemoved(block_hashes=(1,))) == [block(1)]
            await first.send(removed(1))
            assert await until(observations, BlocksRemoved(block_hashes=(1,))) == []


async def _given(sources: tuple[KvSource, ...]) -> tuple[KvSource, ...]:
    return sources


@pytest.mark.parametrize(
    ("medium", "tier"),
    [("GPU", Tier.HBM), ("CPU_PINNED", Tier.DRAM), ("DISK", Tier.DISK), ("EXTERNAL", Tier.DISK), ("new", Tier.DRAM)],
)
def test_sglangs_media_are_tiers(medium: str, tier: Tier) -> None:
    assert _tier(medium) is tier


# --- through a gateway ----------------------------------------------------------------------------------------------------


async def test_a_gateway_drives_it(session: aiohttp.ClientSession) -> None:
    """The engine is found out, the call with the sooner deadline has the higher priority, and a client that leaves frees it."""
    fake = FakeSglang()
    async with serving(fake.app()) as url:
        server = ServerConfig(port=0, shutdown_grace_s=0.5)
        async with running_gateway(ServeConfig(server=server, workers=(WorkerConfig(url=url, name="w0"),))) as gateway:
            async with session.get(gateway.url + "/amf/v1/workers") as response:
                assert '"engine":"sglang"' in (await response.text()).replace(" ", "")
            body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
            chat = gateway.url + "/v1/chat/completions"
            for deadline_ms in ("600000", "5000"):
                async with session.post(chat, json=body, headers={"x-amf-deadline-ms": deadline_ms}) as response:
                    assert response.status == 200
            relaxed, pressed = map(json.loads, fake.bodies)
            assert pressed["priority"] > relaxed["priority"]
            assert {**relaxed, **body} == relaxed
            fake.hang = True
            async with session.post(chat, json={**body, "stream": True}) as response:
                await response.content.readany()
            assert await until_aborted(fake) == [{"rid": json.loads(fake.bodies[2])["rid"]}]

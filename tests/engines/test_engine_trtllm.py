"""What the TensorRT-LLM adapter adds: the probe, priorities, load, and events that are handed out once.

Against a fake of the documented shapes only: the engine needs a GPU of its own and has never been met.
"""

import asyncio
import json
import math
import struct
from collections.abc import AsyncIterator
from contextlib import aclosing
from itertools import pairwise
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from engine_fakes import METRICS, publishing, serving
from engine_fakes import stored as published
from hypothesis import example, given
from hypothesis import strategies as st
from trtllm_fakes import FakeTrtllm, block, created, iteration, removed, stored, updated

from amf.config import LimitsConfig, WorkerConfig
from amf.core.events import PrefixesCleared, PrefixEvicted, PrefixStored, WorkerJoined
from amf.core.types import Tier
from amf.engines import trtllm as adapter
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
from amf.engines.keys import token_keys
from amf.engines.openai import OpenAIEngine
from amf.engines.options import EngineLimits, EngineOptions
from amf.engines.trtllm import TrtllmEngine, priority
from amf.engines.trtpoll import POLL_INTERVAL_S, EventPoll
from amf.engines.vllm import VllmEngine
from amf.gateway.link import Link

EAGER = EngineLimits(observe_interval_s=0.02, discover_interval_s=0.1, reconnect_max_s=0.1, control_timeout_s=5.0)


def trtllm(url: str, session: aiohttp.ClientSession, limits: EngineLimits = EAGER, **options: Any) -> TrtllmEngine:
    return TrtllmEngine(url, session, EngineOptions(limits=limits, **options))


# --- urgency --------------------------------------------------------------------------------------------------------------


def single(value: float) -> float:
    """As an engine keeps it that has floats of 32 bits only."""
    return struct.unpack("f", struct.pack("f", value))[0]


@given(st.floats(), st.floats())
@example(math.inf, -math.inf)
@example(1e308, 1e300)
def test_more_urgent_is_never_lower(left_s: float, right_s: float) -> None:
    assert 0.0 <= priority(left_s) <= 1.0
    for keep in (float, single):
        if left_s <= right_s:
            assert keep(priority(left_s)) >= keep(priority(right_s))


@given(st.floats(-(2**21), 2**21 - 0.26), st.floats(0.26, 1e6))
@example(-(2.0**21), 0.26)
@example(2.0**21 - 0.26, 0.26)
def test_more_than_a_quarter_of_a_second_is_told_apart_for_24_days(start_s: float, gap_s: float) -> None:
    for keep in (float, single):
        assert keep(priority(start_s)) > keep(priority(start_s + gap_s))


def test_the_scale_of_priorities() -> None:
    assert [priority(s) for s in (-math.inf, -(2.0**21), 0.0, 2.0**20, 2.0**21, math.inf)] == [1, 1, 0.5, 0.25, 0, 0]
    assert priority(math.nan) == 0.0


async def sent_body(session: aiohttp.ClientSession, path: str, body: bytes, **options: Any) -> bytes:
    received: list[bytes] = []

    async def handler(request: web.Request) -> web.Response:
        received.append(await request.read())
        return web.Response()

    app = web.Application()
    app.router.add_post(path, handler)
    request = EngineRequest(request_id="r", path=path, body=body, headers={}, urgency_s=2.0**19, session_id="s")
    async with serving(app) as url, trtllm(url, session, **options).generate(request) as upstream:
        assert upstream.status == 200
    return received[0]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_urgency_is_the_only_member_added_and_only_on_demand(session: aiohttp.ClientSession, path: str) -> None:
    body = b'{"model": "m",  "agent_hierarchy": [["a", 1]], "priority": 0.9 }'
    assert await sent_body(session, path, body) == body
    sent = await sent_body(session, path, body, priority=True)
    assert sent.startswith(body[:-2]) and json.loads(sent) == json.loads(body) | {"priority": 0.375}


async def test_other_routes_get_no_priority(session: aiohttp.ClientSession) -> None:
    assert await sent_body(session, "/v1/embeddings", b"{}", priority=True) == b"{}"


# --- probe ----------------------------------------------------------------------------------------------------------------


async def test_probe_tells_all_that_the_engine_tells(session: aiohttp.ClientSession) -> None:
    fake = FakeTrtllm()
    fake.emit(created(1000, 500), window=4096)
    fake.iterations = [iteration(1) | {"kvCacheStats": {"maxNumBlocks": 7, "tokensPerBlock": 64}}]
    async with serving(fake.app()) as url:
        assert await trtllm(url, session, priority=True).probe() == EngineInfo(
            engine="trtllm",
            models=("tiny",),
            version="1.4.0rc1",
            block_tokens=64,
            kv_tokens=64_000,
            capabilities=Capabilities(
                kv_events=True, token_hashes=True, priority="higher-first", token_prompts=True, tiers=("dram",)
            ),
        )


@pytest.mark.parametrize("status", [404, 500, 200])
async def test_probe_of_an_engine_that_tells_less(session: aiohttp.ClientSession, status: int) -> None:
    fake = FakeTrtllm()
    for path in ("/version", "/metrics", "/kv_cache_events"):
        fake.raw[path] = (status, b"<html>")
    async with serving(fake.app()) as url:
        info = await trtllm(url, session).probe()
    assert (info.version, info.block_tokens, info.kv_tokens) == (None, 32, None)
    assert info.capabilities == Capabilities(token_prompts=True)


async def test_the_cache_is_known_from_the_statistics_if_its_making_was_not_seen(session: Any) -> None:
    fake = FakeTrtllm()
    fake.iterations = [{"numActiveRequests": 0}, iteration(0, blocks=300)]
    async with serving(fake.app()) as url:
        info = await trtllm(url, session).probe()
    assert (info.kv_tokens, info.capabilities.tiers) == (9600, ())


async def test_events_are_believed_in_once_some_came_and_until_there_is_no_answer(session: Any) -> None:
    """An engine without events has nothing to tell either: an empty answer proves nothing."""
    fake = FakeTrtllm()
    async with serving(fake.app()) as url:
        engine = trtllm(url, session)

        async def has_events() -> bool:
            return (await engine.probe()).capabilities.kv_events

        assert not await has_events()
        fake.emit(created(10))
        assert await has_events()
        assert await has_events()
        fake.raw["/kv_cache_events"] = (503, b"")
        assert not await has_events()
        del fake.raw["/kv_cache_events"]
        assert not await has_events()
        fake.raw["/kv_cache_events"] = (503, b"")
        assert not await has_events()
        del fake.raw["/kv_cache_events"]
        fake.emit(created(10))
        assert await has_events()


@pytest.mark.parametrize(
    ("kind", "owned_by", "raw", "expected"),
    [
        ("auto", "tensorrt_llm", {}, TrtllmEngine),
        ("auto", "me", {"/openapi.json": b'{"paths": {"/kv_cache_events": {"post": {}}}}'}, TrtllmEngine),
        ("auto", "me", {"/prometheus/metrics": b"# HELP x y\ntrtllm_request_success_total 3\n"}, TrtllmEngine),
        ("auto", "me", {"/openapi.json": b'{"paths": null}', "/prometheus/metrics": b"a_trtllm_b 1"}, OpenAIEngine),
        ("auto", "me", {"/openapi.json": b"[]"}, OpenAIEngine),
        ("auto", "me", {"/metrics": METRICS.encode()}, VllmEngine),
        ("trtllm", "me", {}, TrtllmEngine),
        ("openai", "tensorrt_llm", {}, OpenAIEngine),
    ],
)
async def test_connect_picks_the_adapter(
    session: aiohttp.ClientSession, kind: Any, owned_by: str, raw: dict[str, bytes], expected: type
) -> None:
    fake = FakeTrtllm()
    fake.owned_by = owned_by
    fake.raw |= {path: (200, body) for path, body in raw.items()}
    async with serving(fake.app()) as url:
        assert type(await connect(url, session, EngineOptions(kind=kind))) is expected


async def test_an_engine_that_keeps_silent_about_its_routes_is_still_an_engine(session: Any) -> None:
    async def hang(_: web.Request) -> web.Response:
        await asyncio.sleep(3600)
        return web.Response()

    app, plain = web.Application(), FakeTrtllm()
    plain.owned_by = "me"
    app.router.add_get("/v1/models", plain._models)
    app.router.add_get("/openapi.json", hang)
    app.router.add_get("/prometheus/metrics", hang)
    async with serving(app) as url:
        assert not await TrtllmEngine.recognises(trtllm(url, session, EngineLimits(control_timeout_s=0.1)))


# --- load -----------------------------------------------------------------------------------------------------------------

PAGE = """\
# TYPE trtllm_num_requests_running gauge
trtllm_num_requests_running{rank="0"} 2.0
trtllm_num_requests_running{rank="1"} 1.0
trtllm_num_requests_waiting 4.0
trtllm_kv_cache_utilization 0.5
"""
PAGE_LOAD = LoadReport(running=3, waiting=4, kv_used_ratio=0.5)


@pytest.mark.parametrize(
    ("iterations", "page", "expected"),
    [
        ([iteration(9), iteration(3, 2, used=250)], PAGE, LoadReport(running=3, waiting=2, kv_used_ratio=0.25)),
        ([iteration(1, used=5, blocks=0)], "", LoadReport(running=1, waiting=0, kv_used_ratio=0.0)),
        ([iteration(1, used=5, blocks=1)], "", LoadReport(running=1, waiting=0, kv_used_ratio=1.0)),
        ([{"numActiveRequests": 6}], "", LoadReport(running=6, waiting=0, kv_used_ratio=0.0)),
        ([{"numActiveRequests": None}], "", None),
        ([{"iter": 1}], PAGE, PAGE_LOAD),
        (["text"], PAGE, PAGE_LOAD),
        ([], PAGE, PAGE_LOAD),
        ([], "", None),
        ([], "trtllm_num_requests_running NaN\n", None),
        ([], "trtllm_request_success_total 7\n", None),
    ],
)
async def test_load(session: Any, iterations: list[Any], page: str, expected: LoadReport | None) -> None:
    fake = FakeTrtllm()
    fake.iterations = iterations
    fake.raw["/prometheus/metrics"] = (200, page.encode())
    async with serving(fake.app()) as url:
        assert await trtllm(url, session).load() == expected


@pytest.mark.parametrize("status", [200, 404, 500])
async def test_load_of_a_server_with_prometheus_on_its_metrics_route_or_none(session: Any, status: int) -> None:
    fake = FakeTrtllm()
    fake.raw["/metrics"] = (status, PAGE.encode())
    async with serving(fake.app()) as url:
        assert await trtllm(url, session).load() == (PAGE_LOAD if status == 200 else None)


async def test_a_missing_page_is_asked_for_once_a_probe(session: aiohttp.ClientSession) -> None:
    fake = FakeTrtllm()
    async with serving(fake.app()) as url:
        engine = trtllm(url, session)
        for looks in (1, 2):
            for _ in range(5):
                assert await engine.load() is None
            assert fake.asked.count("/prometheus/metrics") == looks
            await engine.probe()


async def test_an_engine_that_ends_no_iteration_rests(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTrtllm()
    fake.iterations = [iteration(3, 1, used=100)]
    async with serving(fake.app()) as url:
        engine = trtllm(url, session)
        assert await engine.load() == LoadReport(running=3, waiting=1, kv_used_ratio=0.1)
        assert await engine.load() is None
        monkeypatch.setattr(adapter, "IDLE_AFTER_S", 0.0)
        assert await engine.load() == LoadReport(running=0, waiting=0, kv_used_ratio=0.1)


async def test_load_of_an_absent_engine(session: aiohttp.ClientSession, unused_tcp_port: int) -> None:
    with pytest.raises(EngineError, match="GET /metrics: no connection"):
        await trtllm(f"http://127.0.0.1:{unused_tcp_port}", session).load()


# --- events ---------------------------------------------------------------------------------------------------------------


def seen(name: int) -> BlocksStored:
    return BlocksStored(block_hashes=(name,), parent_hash=None, token_ids=(name, name), block_tokens=2)


def one(name: int) -> dict[str, Any]:
    return stored(block(name, [name, name]))


async def until(observations: AsyncIterator[Observation], wanted: Observation) -> list[Observation]:
    """What is observed up to the wanted observation, loads left out."""
    before = []
    async with asyncio.timeout(15):
        async for observation in observations:
            if observation == wanted:
                return before
            if not isinstance(observation, LoadReport):
                before.append(observation)
    raise AssertionError("the observation ended")


async def test_what_the_probe_was_told_is_observed_too(session: aiohttp.ClientSession) -> None:
    fake = FakeTrtllm()
    fake.emit(created(10), one(1))
    async with serving(fake.app()) as url:
        engine = trtllm(url, session)
        await engine.probe()
        fake.emit(one(2))
        await engine.probe()
        fake.emit(removed(1))
        fake.iterations = [iteration(2, used=100)]
        async with aclosing(engine.observe()) as observations:
            assert await until(observations, BlocksRemoved(block_hashes=(1,))) == [seen(1), seen(2)]
            async with asyncio.timeout(10):
                assert await anext(observations) == LoadReport(running=2, waiting=0, kv_used_ratio=0.1)


async def test_what_nobody_reads_is_bounded(session: aiohttp.ClientSession) -> None:
    """Of five answers the oldest is dropped: what follows begins in the middle, as for one who came late."""
    fake = FakeTrtllm()
    async with serving(fake.app()) as url:
        engine = trtllm(url, session)
        for name in range(1, 6):
            fake.emit(one(name))
            await engine.probe()
        async with aclosing(engine.observe()) as observations:
            assert await until(observations, seen(5)) == [seen(2), seen(3), seen(4)]


async def test_observation_survives_death_and_return(session: aiohttp.ClientSession, unused_tcp_port: int) -> None:
    fake = FakeTrtllm()
    engine = trtllm(f"http://127.0.0.1:{unused_tcp_port}", session)
    async with aclosing(engine.observe()) as observations:
        first = asyncio.create_task(until(observations, seen(1)))
        await asyncio.sleep(0.1)
        fake.emit(created(10), one(1))
        async with serving(fake.app(), unused_tcp_port):
            assert await first == []
        fake.restart()
        fake.emit(created(10), one(2))
        async with serving(fake.app(), unused_tcp_port):
            assert await until(observations, seen(2)) == [CacheCleared(reason="the engine restarted")]


async def test_a_reader_that_falls_behind_loses_nothing(session: aiohttp.ClientSession) -> None:
    """While it reads, nobody asks: the events wait in the engine."""
    fake = FakeTrtllm()
    async with serving(fake.app()) as url:
        limits = EngineLimits(observe_interval_s=0.01, observation_queue_size=2)
        async with aclosing(trtllm(url, session, limits).observe()) as observations:
            fake.emit(one(1))
            await until(observations, seen(1))
            for name in range(2, 200):
                fake.emit(one(name))
                if name % 50 == 0:
                    await asyncio.sleep(0.03)
            fake.emit(one(200))
            assert await until(observations, seen(200)) == [seen(name) for name in range(2, 200)]


async def test_events_are_asked_for_more_often_than_the_load_may_be(session: aiohttp.ClientSession) -> None:
    fake = FakeTrtllm()
    limits = EngineLimits(observe_interval_s=3600)
    async with serving(fake.app()) as url, aclosing(trtllm(url, session, limits).observe()) as observations:
        for name in range(1, 4):
            fake.emit(one(name))
            assert await until(observations, seen(name)) == []


async def test_a_buffer_that_ran_over_is_a_gap(session: aiohttp.ClientSession) -> None:
    fake = FakeTrtllm(buffer_size=3)
    async with serving(fake.app()) as url, aclosing(trtllm(url, session).observe()) as observations:
        fake.emit(one(1))
        await until(observations, seen(1))
        fake.emit(*[one(name) for name in range(2, 7)])
        assert await until(observations, seen(6)) == [CacheCleared(reason="events lost: 2"), seen(4), seen(5)]


@pytest.mark.parametrize("answer", [(404, b""), (500, b"oops"), (200, b"<html>"), (200, b'{"events": []}')])
async def test_an_engine_without_events_is_observed_and_asked_again(session: Any, answer: tuple[int, bytes]) -> None:
    fake = FakeTrtllm()
    fake.raw["/kv_cache_events"] = answer
    fake.iterations = [iteration(2, used=100)]
    async with serving(fake.app()) as url, aclosing(trtllm(url, session).observe()) as observations:
        async with asyncio.timeout(10):
            assert await anext(observations) == LoadReport(running=2, waiting=0, kv_used_ratio=0.1)
        del fake.raw["/kv_cache_events"]
        fake.emit(one(1))
        assert await until(observations, seen(1)) == []


@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_observation_ends_in_the_middle_of_a_question(session: aiohttp.ClientSession, how: str) -> None:
    asked = asyncio.Event()

    async def hang(_: web.Request) -> web.Response:
        asked.set()
        await asyncio.sleep(3600)
        return web.Response()

    app = web.Application()
    app.router.add_post("/kv_cache_events", hang)
    async with serving(app) as url:
        engine = trtllm(url, session)
        watching = asyncio.ensure_future(anext(engine.observe(), None))
        await asyncio.wait_for(asked.wait(), 10)
        if how == "close":
            await engine.close()
            assert await asyncio.wait_for(watching, 5) is None
        else:
            watching.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(watching, 5)


async def test_the_events_of_one_engine_go_to_one_observation(session: aiohttp.ClientSession) -> None:
    fake = FakeTrtllm()
    async with serving(fake.app()) as url:
        engine = trtllm(url, session)
        async with aclosing(engine.observe()) as first, aclosing(engine.observe()) as second:
            fake.emit(one(1))
            assert await until(first, seen(1)) == []
            fake.raw["/prometheus/metrics"] = (200, PAGE.encode())
            fake.emit(*[one(name) for name in range(2, 20)])
            async with asyncio.timeout(10):
                assert await anext(second) == PAGE_LOAD
            assert await until(first, seen(19)) == [seen(name) for name in range(2, 19)]
        fake.emit(one(20))
        async with aclosing(engine.observe()) as third:
            assert await until(third, seen(20)) == []


async def test_a_configured_publisher_takes_the_place_of_polling(session: aiohttp.ClientSession) -> None:
    fake = FakeTrtllm()
    fake.emit(one(1))
    async with publishing() as publisher, serving(fake.app()) as url:
        options = {"kv_events_endpoint": publisher.endpoint, "kv_replay_endpoint": publisher.replay_endpoint}
        engine = trtllm(url, session, **options)
        assert (await engine.probe()).capabilities == Capabilities(
            kv_events=True, token_hashes=True, token_prompts=True
        )
        async with aclosing(engine.observe()) as observations:
            wanted = asyncio.create_task(until(observations, seen(7)))
            await asyncio.wait_for(publisher.subscribed(), 10)
            await publisher.send(published([7], [7, 7]))
            assert await wanted == []
    assert "/kv_cache_events" not in fake.asked


async def test_an_engine_that_will_not_tell_is_asked_later_and_later_but_not_too_late(monkeypatch: Any) -> None:
    answers: list[tuple[int, bytes]] = []
    asked_at_s: list[float] = []
    now_s = 1000.0

    async def ask() -> tuple[int, bytes]:
        asked_at_s.append(now_s)
        if not answers:
            raise EngineError("away")
        return answers.pop()

    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now_s)
    poll = EventPoll(ask, max_pause_s=4.0)
    for _ in range(1000):
        assert await poll.take() == []
        now_s += 0.03125
    pauses = [later - before for before, later in pairwise(asked_at_s)]
    assert pauses[:4] == [2 * POLL_INTERVAL_S, 4 * POLL_INTERVAL_S, 8 * POLL_INTERVAL_S, 4.0]
    assert set(pauses[4:]) == {4.0}
    now_s += 4.0
    answers += [(200, b"[2]"), (200, b"[1]")]
    assert [bytes(event) for _ in range(2) for event in await poll.take()] == [b"1", b"2"]
    assert poll.has_events


async def test_two_questions_at_once_are_answered_in_order() -> None:
    numbers = iter(range(100))

    async def ask() -> tuple[int, bytes]:
        number = next(numbers)
        await asyncio.sleep(0.01 if number == 0 else 0)
        return 200, b"[%d]" % number

    poll = EventPoll(ask, max_pause_s=1.0)
    _, taken = await asyncio.gather(poll.peek(), poll.take())
    assert [bytes(event) for event in taken] == [b"0", b"1"]


class Recorder:
    """A driver that keeps what it is told, and a watcher with exact pools only."""

    def __init__(self) -> None:
        self.told: list[tuple[type, dict[str, Any]]] = []
        self.cleared = asyncio.Event()

    def submit(self, kind: type, **fields: Any) -> None:
        self.told.append((kind, fields))
        if kind is PrefixesCleared:
            self.cleared.set()

    def changed(self, link: Link) -> None: ...

    def is_exact(self, pool: str) -> bool:
        return True


async def test_the_gateway_follows_the_cache_by_the_tokens_of_its_blocks(session: aiohttp.ClientSession) -> None:
    fake, recorder, tokens = FakeTrtllm(), Recorder(), list(range(64))
    fake.emit(created(1000, 500), stored(block(1, tokens[:32]), block(2, tokens[32:])))
    fake.emit(updated(2, 0, 1), removed(2, 1), stored(block(3, tokens[:32])), created(1000, 500))
    async with serving(fake.app()) as url:
        driver: Any = recorder
        limits = LimitsConfig(observe_interval_s=0.02)
        link = Link("w0", WorkerConfig(url=url), limits, driver, recorder)
        link.start(session)
        await asyncio.wait_for(recorder.cleared.wait(), 10)
        await link.stop("done")
    first, second = token_keys(tokens, 32)
    (joined, fields), *rest = recorder.told
    assert joined is WorkerJoined
    assert (fields["worker"].has_kv_events, fields["worker"].block_tokens, fields["worker"].kv_tokens) == (
        True,
        32,
        32_000,
    )
    assert [(kind, fields.get("keys"), fields.get("tier")) for kind, fields in rest[:6]] == [
        (PrefixStored, (first, second), Tier.HBM),
        (PrefixStored, (second,), Tier.DRAM),
        (PrefixEvicted, (second,), Tier.HBM),
        (PrefixEvicted, (second,), Tier.DRAM),
        (PrefixEvicted, (first,), Tier.HBM),
        (PrefixStored, (first,), Tier.HBM),
    ]
    assert rest[6][0] is PrefixesCleared

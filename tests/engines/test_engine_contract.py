"""What every adapter promises, whatever engine it drives: bytes through untouched, faults as EngineError, in time."""

import asyncio
import gzip
import json
import random
import time
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from engine_fakes import FakeVllm, answering, raw_server, read_request, serving, then_silent
from fake_llamacpp import FakeLlamaCpp
from fake_sglang import FakeSglang
from fake_tgi import FakeTgi

from amf.engines.engine import Engine, EngineError, EngineRequest
from amf.engines.llamacpp import LlamaCppEngine
from amf.engines.openai import OpenAIEngine
from amf.engines.options import EngineLimits, EngineOptions
from amf.engines.sglang import SglangEngine
from amf.engines.tgi import TgiEngine
from amf.engines.trtllm import TrtllmEngine
from amf.engines.vllm import VllmEngine

QUICK = EngineLimits(connect_timeout_s=1.0, head_timeout_s=0.3, stall_timeout_s=0.3, control_timeout_s=0.3)
PATIENT = EngineLimits(connect_timeout_s=5.0, head_timeout_s=20.0, stall_timeout_s=20.0, control_timeout_s=20.0)
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

Connect = Callable[..., Engine]


ADAPTERS = {  # each with a server of its kind
    VllmEngine: FakeVllm,
    TrtllmEngine: FakeVllm,
    OpenAIEngine: FakeVllm,
    LlamaCppEngine: FakeLlamaCpp,
    TgiEngine: FakeTgi,
    SglangEngine: FakeSglang,
}


@pytest.fixture(params=ADAPTERS)
def adapter(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def server(adapter: Any) -> Any:
    return ADAPTERS[adapter]()


@pytest.fixture
def connect(adapter: Any, session: aiohttp.ClientSession) -> Connect:
    def connect(url: str, limits: EngineLimits = PATIENT, **options: Any) -> Engine:
        return adapter(url, session, EngineOptions(limits=limits, **options))

    return connect


def call(body: bytes = b"{}", **more: Any) -> EngineRequest:
    fields = {"request_id": "r1", "path": "/v1/chat/completions", "headers": {}} | more
    return EngineRequest(body=body, **fields)


async def answer(engine: Engine, request: EngineRequest) -> tuple[int, bytes]:
    async with engine.generate(request) as upstream:
        return upstream.status, b"".join([chunk async for chunk in upstream.chunks()])


async def test_json_passes_through_byte_for_byte(connect: Connect) -> None:
    """What an adapter adds to a request's body stands behind all that the client wrote."""
    body = '{"model": "m",  "x": "é\\u0000", "n":1e3 }'.encode()
    received: list[bytes] = []

    async def handler(request: web.Request) -> web.Response:
        received.append(await request.read())
        return web.Response(body=body[::-1], content_type="application/json", headers={"X-Thing": "1"})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", handler)
    async with serving(app) as url, connect(url).generate(call(body)) as upstream:
        assert upstream.status == 200
        assert upstream.headers["x-thing"] == "1"
        assert upstream.headers["Content-Length"] == str(len(body))
        assert b"".join([chunk async for chunk in upstream.chunks()]) == body[::-1]
    (sent,) = received
    assert sent == body or (
        sent.startswith(body[:-1].rstrip() + b",") and {**json.loads(sent), **json.loads(body)} == json.loads(sent)
    )


async def test_a_stream_arrives_chunk_by_chunk(connect: Connect) -> None:
    events = [b'data: {"i": %d}\n\n' % i for i in range(5)] + [b"data: [DONE]\n\n"]
    taken = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in events:
            await response.write(event)
            await taken.wait()
            taken.clear()
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", handler)
    received = []
    async with serving(app) as url, connect(url).generate(call()) as upstream:
        assert "Transfer-Encoding" not in upstream.headers
        async for chunk in upstream.chunks():
            received.append(chunk)
            taken.set()
    assert received == events


async def test_compressed_bytes_are_neither_asked_for_nor_touched(connect: Connect) -> None:
    packed = gzip.compress(b"x" * 1000)
    asked: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        asked.append(request.headers["Accept-Encoding"])
        return web.Response(body=packed, headers={"Content-Encoding": "gzip"})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", handler)
    async with serving(app) as url:
        assert await answer(connect(url), call(headers={"Accept-Encoding": "gzip, br"})) == (200, packed)
    assert asked == ["identity"]


@pytest.mark.parametrize("status", [302, 400, 404, 429, 500, 503])
async def test_an_engine_that_says_no_is_quoted(connect: Connect, status: int) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=status, body=b'{"error": "no"}', headers={"Location": "/elsewhere"})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", handler)
    async with serving(app) as url:
        assert await answer(connect(url), call()) == (status, b'{"error": "no"}')


async def test_leaving_early_closes_the_connection(connect: Connect) -> None:
    gone = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await then_silent(CHUNKED, b"3\r\nabc\r\n")(reader, writer)
        gone.set()

    async with raw_server(script) as url:
        async with connect(url).generate(call()) as upstream:
            assert await anext(aiter(upstream.chunks())) == b"abc"
        await asyncio.wait_for(gone.wait(), 5)


async def test_a_cancel_before_the_head_closes_the_connection(connect: Connect) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        asked.set()
        await reader.read()
        gone.set()

    async with raw_server(script) as url:
        attempt = asyncio.create_task(answer(connect(url), call()))
        await asyncio.wait_for(asked.wait(), 5)
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt
        await asyncio.wait_for(gone.wait(), 5)


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ((), "no response head from the engine within 0.3 s"),
        ((b"HTTP/1.1 200 OK\r\nContent-",), "no response head from the engine within 0.3 s"),
        ((CHUNKED,), "the engine stalled for 0.3 s"),
        ((CHUNKED, b"3\r\nabc\r\n"), "the engine stalled for 0.3 s"),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",), "the engine stalled for 0.3 s"),
    ],
)
async def test_silence_ends_within_its_limit(connect: Connect, pieces: tuple[bytes, ...], reason: str) -> None:
    async with raw_server(then_silent(*pieces)) as url:
        started_s = time.monotonic()
        with pytest.raises(EngineError, match=reason):
            await answer(connect(url, QUICK), call())
        assert 0.3 <= time.monotonic() - started_s < 3.0


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ((), "closed the connection before answering"),
        ((b"garbage\r\n\r\n",), "what is not HTTP"),
        ((b"HTTP/1.1 two hundred\r\n\r\n",), "what is not HTTP"),
        ((b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",), "what is not HTTP"),
        ((b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",), "status 101"),
        ((CHUNKED,), "broke off"),
        ((CHUNKED, b"3\r\nabc\r\n"), "broke off"),
        ((CHUNKED, b"zz\r\nabc\r\n"), "broke off|not HTTP"),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",), "broke off"),
    ],
)
async def test_a_broken_answer_is_the_engines_fault(connect: Connect, pieces: tuple[bytes, ...], reason: str) -> None:
    async with raw_server(answering(*pieces)) as url:
        with pytest.raises(EngineError, match=reason) as caught:
            await answer(connect(url), call())
        assert "abc" not in str(caught.value)


async def test_whatever_an_engine_sends_there_is_an_end(connect: Connect) -> None:
    rng = random.Random(5)
    words = [
        b"HTTP/1.1 ",
        b"200 OK",
        b"\r\n",
        b"\r\n\r\n",
        b"Content-Length: 5",
        b"Transfer-Encoding: chunked",
        b"5\r\n",
    ]
    words += [b"hello", b"0", b":", b"\0\xff", b"HTTP/0.9", b" 99 ", b"Content-Encoding: gzip\r\n"]
    for _ in range(60):
        pieces = [b"HTTP/1.1 200 OK\r\n" if rng.random() < 0.5 else b"", *rng.choices(words, k=rng.randrange(1, 12))]
        async with raw_server(answering(b"".join(pieces))) as url:
            try:
                status, _ = await asyncio.wait_for(answer(connect(url), call()), 5)
                assert 200 <= status < 1000
            except EngineError:
                pass


async def test_an_absent_engine(connect: Connect, unused_tcp_port: int) -> None:
    engine = connect(f"http://127.0.0.1:{unused_tcp_port}")
    with pytest.raises(EngineError, match="no connection to the engine"):
        await answer(engine, call())
    with pytest.raises(EngineError, match="GET /v1/models: no connection to the engine"):
        await engine.probe()
    assert not await engine.healthy()


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:99999", "not a url", "ftp://x", "http://[::bad", "http://u:p@127.0.0.1:9", "http://" + "a" * 70],
)
async def test_an_impossible_url_is_an_absent_engine(connect: Connect, url: str) -> None:
    with pytest.raises(EngineError):
        await answer(connect(url, api_key="ours"), call())
    assert not await connect(url).healthy()


async def test_probe_finds_the_models(connect: Connect, server: Any) -> None:
    async with serving(server.app()) as url:
        info = await connect(url + "/v1/").probe()
    assert any("tiny" in name for name in info.models)
    assert info.max_model_tokens == 16384


@pytest.mark.parametrize(
    "listing", [b"", b"<html>", b"[]", b"{}", b'{"data": [{"id": 7}]}', b"\xff\xfe", b'["\xff"]', b"[" * 100_000]
)
async def test_probe_refuses_what_names_no_model(connect: Connect, listing: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(listing)
    async with raw_server(answering(head + listing)) as url:
        with pytest.raises(EngineError, match="GET /v1/models"):
            await connect(url).probe()


async def test_control_answers_are_bounded_in_time_and_size(connect: Connect) -> None:
    async with raw_server(then_silent(CHUNKED, b"3\r\nabc\r\n")) as url:
        with pytest.raises(EngineError, match="no answer within"):
            await connect(url, QUICK).probe()
        assert not await connect(url, QUICK).healthy()
    async with raw_server(answering(CHUNKED, *[b"400\r\n" + b"x" * 1024 + b"\r\n"] * 100)) as url:
        with pytest.raises(EngineError, match="longer than 5000 bytes"):
            await connect(url, EngineLimits(control_max_bytes=5000)).probe()


@pytest.mark.parametrize(("health", "models", "expected"), [(200, 0, True), (503, 200, False), (404, 200, True)])
async def test_health(connect: Connect, health: int, models: int, expected: bool) -> None:
    app = web.Application()
    app.router.add_get("/health", lambda _: answer_with(health))
    app.router.add_get("/v1/models", lambda _: answer_with(models))
    async with serving(app) as url:
        assert await connect(url).healthy() is expected


async def answer_with(status: int) -> web.Response:
    return web.Response(status=status)


async def test_a_connection_closed_while_idle_costs_nothing(connect: Connect) -> None:
    """The engine answers one request a connection and closes it when the next one comes, as a keep-alive timer does."""
    bodies: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, body = await read_request(reader)
        bodies.append(body)
        writer.write(OK)
        await reader.readexactly(1)

    async with raw_server(script) as url:
        engine = connect(url)
        for i in range(3):
            assert await answer(engine, call(b"%d" % i)) == (200, b"ok")
    assert bodies == [b"0", b"1", b"2"]


async def test_no_second_try_on_a_fresh_connection_or_after_a_byte(connect: Connect) -> None:
    connections = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await read_request(reader)
        if connections == 1:
            return
        writer.write(OK)
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")

    async with raw_server(script) as url:
        engine = connect(url)
        with pytest.raises(EngineError, match="before answering"):
            await answer(engine, call())
        assert connections == 1
        assert await answer(engine, call()) == (200, b"ok")
        with pytest.raises(EngineError, match="broke off"):
            await answer(engine, call())
        assert connections == 2


async def test_many_calls_at_once_do_not_wait_for_each_other(connect: Connect) -> None:
    arrived, all_here = 0, asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        nonlocal arrived
        arrived += 1
        if arrived == 150:
            all_here.set()
        await all_here.wait()
        return web.Response(body=await request.read())

    app = web.Application()
    app.router.add_post("/v1/chat/completions", handler)
    async with serving(app) as url:
        engine = connect(url)
        bodies = [json.dumps(i).encode() for i in range(150)]
        answers = await asyncio.gather(*(answer(engine, call(body)) for body in bodies))
    assert answers == [(200, body) for body in bodies]


async def test_a_slow_reader_is_not_a_stalled_engine(connect: Connect) -> None:
    total_bytes = 8_000_000
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total_bytes
    async with (
        raw_server(answering(head, b"x" * total_bytes)) as url,
        connect(url, QUICK).generate(call()) as upstream,
    ):
        chunks = upstream.chunks()
        received = len(await anext(chunks))
        await asyncio.sleep(2 * QUICK.stall_timeout_s)
        async for chunk in chunks:
            received += len(chunk)
    assert received == total_bytes


async def test_a_closed_adapter_starts_nothing_and_ends_observation(connect: Connect, server: Any) -> None:
    async with serving(server.app()) as url:
        engine = connect(url)
        watching = asyncio.create_task(drain(engine))
        await asyncio.sleep(0)
        await engine.close()
        await asyncio.wait_for(watching, 5)
        with pytest.raises(EngineError, match="closed"):
            await answer(engine, call())
        assert not await engine.healthy()
        await asyncio.wait_for(drain(engine), 5)


async def test_observation_can_be_cancelled(connect: Connect, server: Any) -> None:
    async with serving(server.app()) as url:
        watching = asyncio.create_task(drain(connect(url)))
        await asyncio.sleep(0.05)
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching


async def test_a_session_closed_under_a_stream_is_an_engine_error(connect: Connect, session: Any) -> None:
    async with raw_server(then_silent(CHUNKED, b"3\r\nabc\r\n")) as url:
        engine = connect(url)
        with pytest.raises(EngineError):
            async with engine.generate(call()) as upstream:
                async for _ in upstream.chunks():
                    await session.close()
        with pytest.raises(EngineError):
            await answer(engine, call())


async def drain(engine: Engine) -> None:
    async for _ in engine.observe():
        pass

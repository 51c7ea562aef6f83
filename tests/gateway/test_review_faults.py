"""Engines that answer what no engine should, and clients that dawdle: nobody hangs, nothing leaks, no state is poisoned."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp
import pytest
from gateway_kit import FAST, Answer, Client, FakeEngine, fake_engine, gateway_of, until

from amf.config import ServerConfig, WorkerConfig
from amf.gateway.service import Gateway

ANSWER = FakeEngine().answer()
EVENT = FakeEngine().sse()[0]


def http(status: str, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", "content-type: application/json", f"content-length: {len(body)}", *headers]
    return "\r\n".join([*lines, "connection: close", "", ""]).encode() + body


@asynccontextmanager
async def scripted(answer: bytes) -> AsyncIterator[FakeEngine]:
    """An engine that answers every chat call with exactly these bytes, and closes."""
    models = json.dumps({"object": "list", "data": [{"id": "tiny", "object": "model"}]}).encode()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if b"chunked" in head:
            await reader.readuntil(b"0\r\n\r\n")
        elif b"content-length:" in head:
            await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
        path = head.split()[1]
        answers = {b"/health": http("200 OK", b""), b"/v1/models": http("200 OK", models)}
        writer.write(answer if path.startswith(b"/v1/chat") else answers.get(path, http("404 Not Found", b"{}")))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield FakeEngine(url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")


def assert_settled(gateway: Gateway) -> None:
    assert gateway.driver.open_calls() == 0
    assert gateway.fabric.totals()["live_calls"] == 0
    assert all(report["committed_tokens"] == 0 for report in gateway.fabric.worker_reports())
    gateway.fabric.check_invariants()


@pytest.mark.parametrize(("status", "headers"), [("503 Busy", ()), ("429 Too Many Requests", ("retry-after: 9",))])
async def test_a_busy_engine_is_not_a_broken_one(status: str, headers: tuple[str, ...]) -> None:
    async with scripted(http(status, b"{}", *headers)) as busy, gateway_of(busy) as (gateway, client):
        answers = [await client.chat(f"hi {n}") for n in range(4)]
        assert {(answer.status, answer.code) for answer in answers} == {(429, "overloaded")}
        assert all(answer.headers["x-should-retry"] == "true" for answer in answers)
        assert gateway.fleet.describe("w0")["status"] == "up"
        assert_settled(gateway)


@pytest.mark.parametrize("status", ["503 Busy", "429 Too Many Requests", "307 Temporary Redirect", "204 No Content"])
async def test_what_one_engine_refuses_another_serves(status: str) -> None:
    location = "location: http://127.0.0.1:9/elsewhere"
    async with (
        scripted(http(status, b"{}", location)) as bad,
        fake_engine() as good,
        gateway_of(bad, good, policy="round-robin") as (gateway, client),
    ):
        answers = [await client.chat(f"hi {n}") for n in range(4)]
        assert {(answer.status, answer.headers["x-amf-worker"]) for answer in answers} == {(200, "w1")}
        assert_settled(gateway)


async def test_a_login_that_the_gateway_owns_is_not_the_clients_problem() -> None:
    async with scripted(http("401 Unauthorized", b"{}")) as engine, fake_engine() as good:
        async with gateway_of(engine) as (_, client):
            assert (await client.chat("hi")).status == 401, "the client logs in by itself"
        async with gateway_of(good) as (gateway, client):
            await gateway.fleet.add(WorkerConfig(url=engine.url, name="locked", api_key="old"))
            answers = [await client.chat(f"hi {n}") for n in range(4)]
            assert {(answer.status, answer.headers["x-amf-worker"]) for answer in answers} == {(200, "w0")}


async def test_half_an_event_is_not_sent_before_the_error() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    async with scripted(head + EVENT + EVENT[:20]) as engine, gateway_of(engine) as (gateway, client):
        answer = await client.chat("hi", stream=True)
        first, error, rest = answer.body.split(b"\n\n")
        assert first + b"\n\n" == EVENT and rest == b""
        assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "upstream_failed"
        assert_settled(gateway)


async def test_an_event_without_its_blank_line_is_ended_before_the_error() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    async with scripted(head + EVENT[:-1]) as engine, gateway_of(engine) as (_, client):
        answer = await client.chat("hi", stream=True)
        assert answer.body.startswith(EVENT + b'data: {"error":')


async def test_a_last_line_without_its_end_arrives() -> None:
    stream = EVENT + b"data: [DONE]"
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    async with scripted(head + stream) as engine, gateway_of(engine) as (gateway, client):
        assert (await client.chat("hi", stream=True)).body == stream
        assert_settled(gateway)


async def test_headers_that_cannot_be_sent_are_left_out() -> None:
    odd = ("x-bad: a\x01b", "x-good: fine", "x-amf-worker: liar", "set-cookie: a=b")
    async with scripted(http("200 OK", ANSWER, *odd)) as engine, gateway_of(engine) as (gateway, client):
        answer = await client.chat("hi")
        assert (answer.status, answer.body) == (200, ANSWER)
        assert "x-bad" not in answer.headers and "set-cookie" not in answer.headers
        assert (answer.headers["x-good"], answer.headers["x-amf-worker"]) == ("fine", "w0")
        assert_settled(gateway)


@pytest.mark.parametrize("usage", [{"cached_tokens": -5}, {"prompt_tokens": 10**24}, {"completion_tokens": -7}])
async def test_a_usage_that_cannot_be_is_none(usage: dict[str, int]) -> None:
    body = json.loads(ANSWER)
    told = body["usage"]
    (told["prompt_tokens_details"] if "cached_tokens" in usage else told).update(usage)
    async with scripted(http("200 OK", json.dumps(body).encode())) as engine, gateway_of(engine) as (gateway, client):
        assert (await client.chat("hi")).status == 200
        totals = gateway.fabric.totals()
        assert 0 < totals["prompt_tokens"] < 1000 and 0 <= totals["output_tokens"] < 1000
        assert_settled(gateway)


async def raw(gateway: Gateway, data: bytes) -> Answer:
    """What comes back for these bytes, to the end of the connection."""
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
    body = await reader.readexactly(length)
    writer.close()
    return Answer(int(head.split()[1]), {}, body)


POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"


async def test_an_upload_that_never_ends_is_given_up() -> None:
    async with fake_engine() as engine, gateway_of(engine, limits=replace(FAST, upload_s=0.2)) as (gateway, client):
        answer = await raw(gateway, POST + b"content-length: 500\r\n\r\n{")
        assert (answer.status, answer.code) == (408, "upload_timeout")
        assert (await client.chat("hi")).status == 200
        assert gateway.fabric.totals()["calls"] == 1


async def test_a_malformed_request_is_logged_without_its_bytes(caplog: pytest.LogCaptureFixture) -> None:
    async with fake_engine() as engine, gateway_of(engine) as (gateway, _):
        with caplog.at_level(logging.DEBUG, "amf.http"):
            answer = await raw(gateway, POST + b"transfer-encoding: chunked\r\n\r\nMY SECRET PROMPT\r\n")
        assert answer.status == 400
        (record,) = [record for record in caplog.records if record.name == "amf.http"]
        assert "SECRET" not in caplog.text and record.exc_info is None and vars(record)["error"] == "BadHttpMessage"


async def test_a_long_header_gets_an_answer_in_the_dialect() -> None:
    async with fake_engine() as engine, gateway_of(engine) as (_, client):
        answer = await client.chat("hi", headers={"x-amf-run-id": "r" * 20_000})
        assert (answer.status, answer.code) == (400, "invalid_identity")


async def test_what_outlives_the_grace_is_told_so() -> None:
    server = ServerConfig(port=0, shutdown_grace_s=0.2)
    slow, stuck = FakeEngine(model="slow", fault="pause"), FakeEngine(model="stuck", fault="hold")
    async with (
        fake_engine(slow),
        fake_engine(stuck),
        aiohttp.ClientSession() as session,
        asyncio.TaskGroup() as group,
        gateway_of(slow, stuck, server=server) as (gateway, _),
    ):
        client = Client(gateway.url, session)
        streamed = group.create_task(client.chat("hi", model="slow", stream=True))
        whole = group.create_task(client.chat("hi", model="stuck"))
        await until(lambda: slow.running == 1 and stuck.running == 1)
    assert whole.result().status == 503 and whole.result().code == "shutting_down"
    assert streamed.result().body.endswith(b'"code":"shutting_down"}}\n\n')


async def test_a_run_keeps_to_its_graph() -> None:
    async with fake_engine() as engine, gateway_of(engine) as (gateway, client):
        first = {"x-amf-run-id": "r", "x-amf-pipeline": "coding"}
        assert (await client.chat("hi", headers=first)).status == 200
        other = await client.chat("hi", headers={**first, "x-amf-pipeline": "support"})
        assert (other.status, other.code) == (400, "contradictory_identity")
        assert (await client.chat("hi", headers={"x-amf-run-id": "r"})).status == 200
        assert gateway.fabric.totals()["calls"] == 2
        assert (await client.request("POST", "/amf/v1/runs/r/close")).status == 200
        again = await client.chat("hi", headers={**first, "x-amf-pipeline": "support"})
        assert again.status == 200, "the name is free again"


BAD_WORKERS = [
    {"url": "http://"},
    {"url": "http://127.0.0.1:notaport"},
    {"url": "http://127.0.0.1:1", "name": "a\r\nb"},
    {"url": "http://127.0.0.1:1", "name": ""},
    {"url": "http://127.0.0.1:1", "api_key": "a\r\nb"},
    {"url": "http://127.0.0.1:1", "kv_tokens": -1},
    {"url": "http://127.0.0.1:1", "dram_tokens": -1},
    {"url": "http://127.0.0.1:1", "dram_bytes_per_s": 0},
    {"url": "http://127.0.0.1:1", "block_tokens": 0},
    {"url": "http://127.0.0.1:1", "max_running": 0},
]
BAD_GRAPHS: list[dict[str, object]] = [
    {"name": "", "hops": ["a"]},
    {"name": "a\nb", "hops": ["a"]},
    {"name": "n" * 300, "hops": ["a"]},
    {"name": "g", "hops": {"a": {"output_tokens": 10**400}}},
    {"name": "g", "hops": {"a": {"expected_s": 10**400}}},
    {"name": "g", "hops": ["a", "b"], "edges": [{"from": "a", "to": "b", "p": 10**400}]},
    {"name": "g", "hops": ["a", "b"], "edges": [{"from": "a", "to": "b"}, {"from": "b", "to": "a", "loop": 10**10}]},
]


async def test_bad_control_requests_change_nothing() -> None:
    async with fake_engine() as engine, gateway_of(engine) as (gateway, client):
        for form in BAD_WORKERS:
            answer = await client.request("POST", "/amf/v1/workers", json=form)
            assert (answer.status, answer.code) == (400, "invalid_worker"), form
        for form in BAD_GRAPHS:
            answer = await client.request("POST", "/amf/v1/graphs", json=form)
            assert (answer.status, answer.code) == (400, "invalid_graph"), form
        assert (await client.request("GET", "/amf/v1/runs?limit=" + "9" * 5000)).status == 400
        assert gateway.fleet.names() == ["w0"]
        assert (await client.request("GET", "/amf/v1/graphs")).json == {"graphs": []}

"""Workers that fail in every way: the call is tried elsewhere while it can be, and the client is always told."""

import asyncio
import json

import aiohttp
import pytest
from gateway_kit import FAST, IMPATIENT, FakeEngine, WatchedFabric, fake_engine, gateway_of, until

from amf.config import LimitsConfig
from amf.core.events import CallArrived, CallFinished, Event
from amf.gateway.service import Gateway


def settled(gateway: Gateway) -> bool:
    return gateway.driver.open_calls() == 0 and gateway.fabric.totals()["live_calls"] == 0


def limits_for(fault: str) -> LimitsConfig:
    return IMPATIENT if fault == "stall" else FAST


SAVED = [("500", False), ("500", True), ("garbage", False), ("garbage", True)]
SAVED += [("refuse", True), ("half", False), ("stall", False)]


@pytest.mark.parametrize(("fault", "stream"), SAVED)
async def test_what_can_be_saved_is_saved(fault: str, stream: bool) -> None:
    async with (
        fake_engine(FakeEngine(fault=fault)) as bad,
        fake_engine() as good,
        gateway_of(bad, good, policy="round-robin", limits=limits_for(fault)) as (gateway, client),
    ):
        answers = [await client.chat("hi", stream=stream) for _ in range(4)]
        whole = b"".join(good.sse()) if stream else good.answer()
        assert [answer.status for answer in answers] == [200] * 4
        assert all(answer.body == whole and answer.headers["x-amf-worker"] == "w1" for answer in answers)
        assert bad.bodies, "the bad worker was never tried"
        assert settled(gateway)
        gateway.fabric.check_invariants()


@pytest.mark.parametrize("fault", ["half", "cut", "stall"])
async def test_a_stream_that_breaks_ends_with_an_error(fault: str) -> None:
    async with (
        fake_engine(FakeEngine(fault=fault)) as engine,
        gateway_of(engine, limits=limits_for(fault)) as (gateway, client),
    ):
        answer = await client.chat("hi", stream=True)
        assert answer.status == 200
        sent = b"".join(engine.sse()[:2])
        assert answer.body.startswith(sent)
        lines = answer.body.removeprefix(sent).split(b"\n\n")
        assert json.loads(lines[0].removeprefix(b"data: "))["error"]["code"] == "upstream_failed"
        assert b"[DONE]" not in answer.body
        assert settled(gateway)
        assert gateway.fabric.totals()["failed"] == 1


async def test_a_stream_that_breaks_after_its_end_mark_is_whole() -> None:
    async with fake_engine(FakeEngine(fault="late")) as engine, gateway_of(engine) as (gateway, client):
        answer = await client.chat("hi", stream=True)
        assert answer.body == b"".join(engine.sse())
        assert settled(gateway)
        assert gateway.fabric.totals()["finished"] == 1


async def test_nobody_can_serve() -> None:
    async with fake_engine(FakeEngine(fault="500")) as engine, gateway_of(engine) as (gateway, client):
        answer = await client.chat("hi")
        assert answer.status in (502, 503) and answer.headers["x-should-retry"] == "true"
        assert settled(gateway)


async def test_the_requests_own_fault_is_passed_on_once() -> None:
    async with fake_engine(FakeEngine(fault="400")) as engine, gateway_of(engine) as (gateway, client):
        answer = await client.chat("hi", stream=True)
        assert (answer.status, answer.json["error"]["message"]) == (400, "no")
        assert len(engine.bodies) == 1
        assert settled(gateway)
        assert gateway.fabric.totals()["failed"] == 1


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_client_that_leaves_cancels_upstream(stream: bool) -> None:
    fault = "pause" if stream else "hold"
    async with fake_engine(FakeEngine(fault=fault)) as engine, gateway_of(engine) as (gateway, client):
        body = {"model": "tiny", "stream": stream, "messages": [{"role": "user", "content": "x"}]}
        task = asyncio.create_task(client.request("POST", "/v1/chat/completions", json=body))
        await until(lambda: engine.running == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: engine.cancelled == 1 and settled(gateway))
        assert gateway.fabric.totals()["cancelled"] == 1
        assert gateway.driver.in_flight["w0"] == 0


async def test_a_worker_that_fails_often_is_taken_out_and_comes_back() -> None:
    async with fake_engine() as one, fake_engine() as two, gateway_of(one, two) as (gateway, client):
        one.healthy = False
        await until(lambda: gateway.fleet.describe("w0")["status"] == "lost")
        assert gateway.fleet.describe("w0")["reason"]
        for _ in range(3):
            assert (await client.chat("hi")).headers["x-amf-worker"] == "w1"
        one.healthy = True
        await until(lambda: gateway.fleet.describe("w0")["status"] == "up")
        for _ in range(3):
            await client.chat("hi")
        assert {answer["x-request-id"] for answer in one.headers}, "it takes calls again"


async def test_a_worker_that_fails_calls_but_not_checks_is_taken_out_too() -> None:
    async with (
        fake_engine(FakeEngine(fault="500")) as one,
        fake_engine() as two,
        gateway_of(one, two) as (gateway, client),
    ):
        for _ in range(6):
            assert (await client.chat("hi")).status == 200
        page = (await client.request("GET", "/metrics")).body.decode()
        assert 'amf_events_total{kind="WorkerDraining"}' in page
        assert len(one.bodies) >= 3
        one.fault = ""
        await until(lambda: gateway.fleet.describe("w0")["status"] == "up")


async def test_a_worker_that_dies_under_load_loses_no_call_it_could_have_saved() -> None:
    async with (
        fake_engine() as good,
        fake_engine(FakeEngine(fault="hold")) as dying,
        gateway_of(dying, good) as (gateway, client),
    ):
        calls = [asyncio.create_task(client.chat(f"q{i}")) for i in range(8)]
        await until(lambda: dying.running >= 2)
        waiting = dying.running
        await _kill(dying)
        answers = await asyncio.gather(*calls)
        assert waiting >= 2
        assert [answer.status for answer in answers] == [200] * 8
        assert settled(gateway)
        gateway.fabric.check_invariants()


async def _kill(engine: FakeEngine) -> None:
    engine.fault, engine.healthy = "half", False
    engine.release.set()


@pytest.mark.parametrize("on", [CallArrived, CallFinished])
async def test_the_fabric_failing_is_not_the_users_failure(on: type[Event]) -> None:
    async with (
        fake_engine() as one,
        fake_engine() as two,
        gateway_of(one, two, fabric=WatchedFabric(fails_on=on)) as (gateway, client),
    ):
        answers = await asyncio.gather(*(client.chat(f"q{i}", stream=i % 2 == 0) for i in range(6)))
        assert [answer.status for answer in answers] == [200] * 6
        assert gateway.driver.open_calls() == 0
        page = (await client.request("GET", "/metrics")).body.decode()
        assert "amf_fabric_errors_total 6.0" in page
        if on is CallArrived:
            assert {answer.headers["x-amf-worker"] for answer in answers} == {"w0", "w1"}


async def test_without_the_fabric_failed_attempts_still_go_elsewhere() -> None:
    async with (
        fake_engine(FakeEngine(fault="500")) as bad,
        fake_engine() as good,
        gateway_of(bad, good, fabric=WatchedFabric(fails_on=CallArrived)) as (_, client),
    ):
        answer = await client.chat("hi")
        assert (answer.status, answer.headers["x-amf-worker"]) == (200, "w1")
        assert len(bad.bodies) == 1


async def test_shutdown_lets_what_runs_finish() -> None:
    async with fake_engine(FakeEngine(fault="hold")) as engine, aiohttp.ClientSession() as session:
        async with gateway_of(engine) as (gateway, _):
            body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
            call = asyncio.create_task(_post(session, gateway.url + "/v1/chat/completions", body))
            await until(lambda: engine.running == 1)
            asyncio.get_running_loop().call_later(0.1, engine.release.set)
        assert await call == 200


async def _post(session: aiohttp.ClientSession, url: str, body: dict[str, object]) -> int:
    async with session.post(url, json=body) as response:
        await response.read()
        return response.status

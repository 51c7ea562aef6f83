"""Deadlines, timeouts and classes through a live gateway: what the fabric is told, what the client reads, what is counted."""

import asyncio

import aiohttp
import pytest
from gateway_kit import FAST, Client, FakeEngine, WatchedFabric, chat_messages, fake_engine, gateway_of, until

from amf.config import ServeConfig, ServerConfig, SloConfig, SloTarget, WorkerConfig
from amf.core.config import FabricConfig
from amf.core.events import CallArrived
from amf.core.types import Call, SloClass
from amf.emulator import EmulatorConfig, running
from amf.gateway.service import Gateway, running_gateway

CHAT = "/v1/chat/completions"


def calls(fabric: WatchedFabric) -> list[Call]:
    return [event.call for event in fabric.events if isinstance(event, CallArrived)]


def counted(gateway: Gateway, name: str, **labels: str) -> float:
    return gateway.metrics.registry.get_sample_value(name, labels) or 0.0


async def test_defaults_of_key_graph_and_class_reach_the_fabric() -> None:
    slo = SloConfig(
        interactive_deadline_s=60.0,
        default_class=SloClass.THROUGHPUT,
        graphs={"coding": SloTarget(deadline_s=50.0, slo_class=SloClass.INTERACTIVE)},
        keys={"gold": SloTarget(deadline_s=40.0)},
    )
    server = ServerConfig(port=0, api_keys=("gold", "plain"), shutdown_grace_s=0.1)
    fabric = WatchedFabric()
    async with (
        fake_engine() as engine,
        gateway_of(engine, fabric=fabric, server=server, slo=slo, policy="fabric") as (_, client),
    ):
        gold, plain = ({"authorization": f"Bearer {key}"} for key in ("gold", "plain"))
        by_key = await client.chat("a", headers=gold)
        by_graph = await client.chat("b", headers={**plain, "x-amf-pipeline": "coding"})
        by_class = await client.chat("c", headers={**plain, "x-amf-slo-class": "interactive"})
        none = await client.chat("d", headers=plain)
    told = [
        (a.headers.get("x-amf-deadline-source"), a.headers["x-amf-slo-class"]) for a in (by_key, by_graph, by_class)
    ]
    assert told == [("key", "throughput"), ("graph", "interactive"), ("class", "interactive")]
    assert none.headers["x-amf-slo-class"] == "throughput"
    assert not {"x-amf-deadline-source", "x-amf-remaining-ms", "x-amf-budget-ms", "x-amf-slack-ms"} & set(none.headers)
    for answer, limit_ms in ((by_key, 40_000), (by_graph, 50_000), (by_class, 60_000)):
        assert limit_ms - 5000 < float(answer.headers["x-amf-budget-ms"]) < limit_ms
        assert float(answer.headers["x-amf-remaining-ms"]) <= float(answer.headers["x-amf-budget-ms"])
    assert [call.slo_class.value for call in calls(fabric)] == [
        "throughput",
        "interactive",
        "interactive",
        "throughput",
    ]
    assert [call.deadline_s is None for call in calls(fabric)] == [False, False, False, True]


@pytest.mark.parametrize("stream", [False, True])
async def test_every_hop_tells_budget_slack_and_source(stream: bool) -> None:
    async with fake_engine() as engine, gateway_of(engine, policy="fabric") as (gateway, client):
        budgets: list[float] = []
        for hop in ("plan", "code", "test"):
            deadline = {"x-amf-deadline-ms": "60000", "x-amf-pipeline": "coding"} if hop == "plan" else {}
            final = {"x-amf-final": "true"} if hop == "test" else {}
            headers = {"x-amf-run-id": "r", "x-amf-hop": hop, **deadline, **final}
            answer = await client.chat(hop, headers=headers, stream=stream)
            assert answer.status == 200 and answer.headers["x-amf-deadline-source"] == "explicit"
            budgets.append(float(answer.headers["x-amf-budget-ms"]))
            assert float(answer.headers["x-amf-slack-ms"]) <= budgets[-1] < 60_000
            assert float(answer.headers["x-amf-remaining-ms"]) <= budgets[-1]
            labels = {"graph": "coding", "hop": hop}
            await until(lambda at=labels: counted(gateway, "amf_budget_burn_ratio_count", **at) == 1.0)
            assert counted(gateway, "amf_slack_seconds_count", **labels) == 1.0
            assert counted(gateway, "amf_slack_seconds_bucket", **labels, le="30.0") == 0.0
            assert counted(gateway, "amf_slack_seconds_bucket", **labels, le="60.0") == 1.0
        assert budgets == sorted(budgets, reverse=True)
        met = {"graph": "coding", "slo_class": "interactive", "outcome": "met"}
        assert counted(gateway, "amf_deadline_pipelines_total", **met) == 1.0
        page = (await client.request("GET", "/metrics")).body.decode()
        assert 'amf_deadline_pipelines_total{graph="coding",outcome="met",slo_class="interactive"} 1.0' in page


async def test_budget_and_slack_are_those_of_the_attempt_that_answered() -> None:
    async with (
        fake_engine(FakeEngine(fault="500")) as broken,
        fake_engine() as engine,
        gateway_of(broken, engine) as (gateway, client),
    ):
        answer = await client.chat("hi", headers={"x-amf-deadline-ms": "60000", "x-amf-hop": "h"})
        assert answer.status == 200 and answer.headers["x-amf-worker"] == "w1" and len(broken.bodies) == 1
        assert counted(gateway, "amf_slack_seconds_count", graph="", hop="h") == 2.0
        decisions = (await client.request("GET", f"/amf/v1/explain/{answer.headers['x-request-id']}")).json["decisions"]
        last = [each for each in decisions if each["type"] == "Dispatch"][-1]
        assert answer.headers["x-amf-budget-ms"] == f"{1000 * last['budget_s']:.1f}"
        assert answer.headers["x-amf-slack-ms"] == f"{1000 * last['slack_s']:.1f}"


async def test_a_timeout_ends_its_call_and_not_the_run() -> None:
    fabric = WatchedFabric()
    async with (
        fake_engine(FakeEngine(fault="hold")) as engine,
        gateway_of(engine, fabric=fabric, policy="fabric") as (gateway, client),
    ):
        run = {"x-amf-run-id": "r"}
        late = await client.chat("hi", headers={**run, "grpc-timeout": "500m"})
        assert (late.status, late.code, late.headers["x-should-retry"]) == (504, "deadline_exceeded", "false")
        assert "grpc-timeout" in late.json["error"]["message"] and late.headers["x-amf-run-id"] == "r"
        await until(lambda: engine.cancelled == 1 and gateway.driver.open_calls() == 0)
        engine.fault = ""
        again = await client.chat("hi", headers={**run, "grpc-timeout": "20S"})
        assert again.status == 200 and "x-amf-budget-ms" not in again.headers
        assert fabric.run_report("r")["cancelled"] == 1 and fabric.run_report("r")["finished"] == 1
        assert [call.deadline_s for call in calls(fabric)] == [None, None]
        fabric.check_invariants()


async def test_a_timeout_holds_in_the_queue_too() -> None:
    async with (
        fake_engine() as engine,
        gateway_of(engine, fabric=WatchedFabric(), policy="fabric") as (gateway, client),
    ):
        engine.healthy = False
        await until(lambda: gateway.fleet.up() == 0)
        late = await client.chat("hi", headers={"x-envoy-expected-rq-timeout-ms": "200"})
        assert (late.status, late.code) == (504, "deadline_exceeded")
        assert gateway.fabric.totals()["waiting"] == {"tiny": 0} and engine.bodies == []


async def test_a_stream_that_has_begun_outlives_its_timeout() -> None:
    async with (
        fake_engine(FakeEngine(fault="pause")) as engine,
        gateway_of(engine, policy="fabric") as (_, client),
    ):
        body = {"model": "tiny", "stream": True, "messages": chat_messages("hi")}
        headers = {"x-litellm-timeout": "0.5"}
        async with client.session.post(client.url + CHAT, json=body, headers=headers) as response:
            first = await response.content.readany()
            await asyncio.sleep(0.6)  # the timeout itself
            engine.release.set()
            assert first + await response.read() == b"".join(engine.sse())


async def test_a_request_that_is_the_whole_run_is_due_at_its_timeout() -> None:
    async with fake_engine() as engine, gateway_of(engine, policy="fabric") as (_, client):
        timeout = {"grpc-timeout": "30S"}
        alone = await client.request("POST", "/v1/completions", json={"model": "tiny", "prompt": "x"}, headers=timeout)
        final = await client.chat("hi", headers={**timeout, "x-amf-final": "true"})
        for answer in (alone, final):
            assert answer.headers["x-amf-deadline-source"] == "grpc-timeout"
            assert 0 < float(answer.headers["x-amf-budget-ms"]) < 30_000
        chat = await client.chat("hi", headers=timeout)
        assert "x-amf-deadline-source" not in chat.headers


async def test_a_refused_pipeline_is_told_its_deadline_and_counts_as_missed() -> None:
    async with (
        running(EmulatorConfig(time_scale=50.0)) as emulator,
        running_gateway(emulated(emulator.url, max_live_pipelines=1)) as gateway,
        aiohttp.ClientSession() as session,
    ):
        client = Client(gateway.url, session)
        body = {"model": "llama-3.1-8b", "messages": chat_messages("hi"), "max_tokens": 4, "stream": True}
        deadline = {"x-amf-deadline-ms": "9000", "x-amf-pipeline": "coding"}
        first = await client.request("POST", CHAT, json=body, headers={**deadline, "x-amf-run-id": "a"})
        second = await client.request("POST", CHAT, json=body, headers={**deadline, "x-amf-run-id": "b"})
        assert (first.status, second.status, second.code) == (200, 429, "pipeline_admission_refused")
        assert second.headers["x-amf-deadline-source"] == "explicit"
        assert 0 < float(second.headers["x-amf-remaining-ms"]) < 9000 and "x-amf-budget-ms" not in second.headers
        assert 0 < float(first.headers["x-amf-slack-ms"]) <= float(first.headers["x-amf-budget-ms"]) < 9000
        missed = {"graph": "coding", "slo_class": "interactive", "outcome": "missed"}
        assert counted(gateway, "amf_deadline_pipelines_total", **missed) == 1.0
        met = {**missed, "outcome": "met"}
        assert counted(gateway, "amf_deadline_pipelines_total", **met) == 0.0  # not over yet
        await client.request("POST", "/amf/v1/runs/a/close")
        await client.request("GET", "/metrics")
        assert counted(gateway, "amf_deadline_pipelines_total", **met) == 1.0


async def test_a_pipeline_that_is_late_has_negative_slack_and_is_missed() -> None:
    async with (
        running(EmulatorConfig(time_scale=50.0)) as emulator,
        running_gateway(emulated(emulator.url)) as gateway,
        aiohttp.ClientSession() as session,
    ):
        client = Client(gateway.url, session)
        body = {"model": "llama-3.1-8b", "messages": chat_messages("hi"), "max_tokens": 8000, "ignore_eos": True}
        headers = {"x-amf-deadline-ms": "300", "x-amf-run-id": "a", "x-amf-hop": "h", "x-slo-ttft-ms": "10"}
        late = await client.request("POST", CHAT, json=body, headers=headers)
        again = await client.request("POST", CHAT, json=body, headers={"x-amf-run-id": "a", "x-amf-final": "true"})
        assert (late.status, again.status) == (200, 200)
        assert float(late.headers["x-amf-remaining-ms"]) < 0 < float(late.headers["x-amf-budget-ms"])
        assert float(again.headers["x-amf-slack-ms"]) < float(again.headers["x-amf-budget-ms"]) < 0
        labels = {"graph": "", "slo_class": "interactive"}
        assert counted(gateway, "amf_deadline_pipelines_total", **labels, outcome="missed") == 1.0
        assert counted(gateway, "amf_ttft_target_calls_total", **labels, outcome="missed") == 1.0
        assert counted(gateway, "amf_slack_seconds_bucket", graph="", hop="", le="0.0") == 1.0
        assert counted(gateway, "amf_budget_burn_ratio_bucket", graph="", hop="", le="1.0") == 0.0


def emulated(url: str, **fabric: int) -> ServeConfig:
    return ServeConfig(
        server=ServerConfig(port=0, time_scale=50.0, shutdown_grace_s=0.5),
        workers=(WorkerConfig(url=url, name="w0", gpu="h200"),),
        fabric=FabricConfig(**fabric),
        limits=FAST,
    )

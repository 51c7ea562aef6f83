"""Time as the `openai` client sees it: a tier or a header goes in, budget, slack and their source come back."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from e2e_kit import MODEL, House, house
from openai import AsyncOpenAI

from amf.config import SloConfig, SloTarget
from amf.emulator import EmulatorConfig

SCALE = 50.0
HELLO = [{"role": "user", "content": "Say something about deadlines."}]
LONG = {"max_tokens": 20_000, "extra_body": {"ignore_eos": True}}
SLO = SloConfig(background_deadline_s=1800.0, graphs={"coding": SloTarget(deadline_s=120.0)})


@asynccontextmanager
async def client_of(**more: Any) -> AsyncIterator[tuple[AsyncOpenAI, House]]:
    workers = [EmulatorConfig(model=MODEL, time_scale=SCALE)] * 2
    async with house(*workers, slo=SLO, **more) as built, AsyncOpenAI(base_url=built.url, api_key="none") as client:
        yield client, built


async def ask(client: AsyncOpenAI, *, headers: dict[str, str] | None = None, **fields: Any) -> Any:
    create = client.chat.completions.with_raw_response.create
    return await create(**{"model": MODEL, "messages": HELLO, "max_tokens": 20, "extra_headers": headers, **fields})


async def test_a_tier_is_a_class_with_its_deadline() -> None:
    async with client_of() as (client, built):
        batch = await ask(client, service_tier="flex", headers={"x-amf-slo-class": "background"})
        flex = await ask(client, service_tier="flex")
        auto = await ask(client, service_tier="auto")
        with pytest.raises(openai.BadRequestError, match="priority") as caught:
            await ask(client, service_tier="express")
        assert (caught.value.code, caught.value.param) == ("invalid_service_tier", "service_tier")
        assert built.fabric.totals()["opened"] == 3
    assert [a.headers["x-amf-slo-class"] for a in (batch, flex, auto)] == ["background", "throughput", "interactive"]
    assert batch.headers["x-amf-deadline-source"] == "class"
    assert 1_790_000 < float(batch.headers["x-amf-budget-ms"]) < 1_800_000
    assert "x-amf-deadline-source" not in flex.headers


async def test_a_pipeline_reads_its_budget_at_every_hop() -> None:
    async with client_of() as (client, built):
        run = {"pipeline": "coding", "run_id": "r1"}
        plan = await ask(client, extra_body={"amf": {**run, "hop": "plan"}})
        code = await ask(client, extra_body={"amf": {**run, "hop": "code", "parents": ["plan"], "deadline_ms": 9e6}})
        stream = await ask(client, extra_body={"amf": {**run, "hop": "test", "final": True}}, stream=True)
        assert [chunk async for chunk in stream.parse()]
        budgets = [float(answer.headers["x-amf-budget-ms"]) for answer in (plan, code, stream)]
        assert 110_000 < budgets[2] < budgets[1] < budgets[0] < 120_000
        for answer in (plan, code, stream):
            assert answer.headers["x-amf-deadline-source"] == "graph"
            assert float(answer.headers["x-amf-slack-ms"]) <= float(answer.headers["x-amf-budget-ms"])
            assert 0 < float(answer.headers["x-amf-remaining-ms"]) <= float(answer.headers["x-amf-budget-ms"])
        met = {"graph": "coding", "slo_class": "interactive", "outcome": "met"}
        assert built.count("amf_deadline_pipelines_total", **met) == 1.0
        assert built.count("amf_budget_burn_ratio_count", graph="coding", hop="plan") == 1.0
        assert built.count("amf_slack_seconds_count", graph="coding", hop="test") == 1.0


async def test_the_clients_own_timeout_is_no_deadline_but_a_proxys_bounds_the_call() -> None:
    async with client_of() as (client, built):
        plain = await ask(client.with_options(timeout=50.0))
        assert plain.http_request.headers["x-stainless-read-timeout"] == "50.0"
        assert "x-amf-deadline-source" not in plain.headers
        proxied = await ask(client, headers={"x-envoy-expected-rq-timeout-ms": "50000"})
        assert "x-amf-deadline-source" not in proxied.headers
        with pytest.raises(openai.APIStatusError) as caught:
            await ask(client, headers={"x-envoy-expected-rq-timeout-ms": "50"}, **LONG)
        assert (caught.value.status_code, caught.value.code) == (504, "deadline_exceeded")
        assert built.requests() == {200: 2, 504: 1}  # the client did not try again
        assert built.gateway.driver.open_calls() == 0 and built.fabric.totals()["live_calls"] == 0


async def test_a_pipeline_whose_deadline_has_passed_is_not_tried_again() -> None:
    async with client_of() as (client, built):
        for headers in ({"x-amf-deadline-ms": "0.000001"}, {"grpc-timeout": "0S"}):
            with pytest.raises(openai.APIStatusError) as caught:
                await ask(client.with_options(max_retries=3), headers=headers)
            assert (caught.value.status_code, caught.value.code) == (504, "deadline_exceeded")
            assert caught.value.response.headers["x-should-retry"] == "false"
        assert built.requests() == {504: 2}
        assert built.fabric.totals()["opened"] == 0 and built.fabric.dispatches() == []


async def test_a_run_ended_at_its_deadline_stays_ended() -> None:
    async with client_of(policy="edf-cancel") as (client, built):
        run = {"x-amf-run-id": "r1", "x-amf-deadline-ms": "300"}
        for attempt in range(2):
            with pytest.raises(openai.APIStatusError) as caught:
                await ask(client, headers=run, **LONG)
            assert (caught.value.status_code, caught.value.code) == (504, "deadline_exceeded")
            headers = caught.value.response.headers
            assert headers["x-should-retry"] == "false" and headers["x-amf-deadline-source"] == "explicit"
            assert attempt or float(headers["x-amf-remaining-ms"]) <= 0
        assert built.requests() == {504: 2}
        missed = {"graph": "", "slo_class": "interactive", "outcome": "missed"}
        assert built.count("amf_deadline_pipelines_total", **missed) == 2.0

"""What the `openai` package does with our refusals: it repeats what may succeed later, and nothing else."""

import asyncio
from typing import Any

import openai
import pytest
from e2e_kit import MODEL, House, house, until
from openai import AsyncOpenAI

from amf.core.config import FabricConfig
from amf.core.events import FirstToken
from amf.emulator import EmulatorConfig

SCALE = 20.0
ROUTE = "/v1/chat/completions"


def client_of(built: House, **options: Any) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=built.url, api_key="none", **{"max_retries": 5, **options})


async def chat(client: AsyncOpenAI, words: str = "hello", **fields: Any) -> Any:
    messages = [{"role": "user", "content": words}]
    return await client.chat.completions.create(**{"model": MODEL, "messages": messages, "max_tokens": 20, **fields})


async def test_an_expired_deadline_is_tried_exactly_once() -> None:
    """A 504 is otherwise repeated by the SDK."""
    async with house(EmulatorConfig(model=MODEL, time_scale=SCALE)) as built, client_of(built) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await chat(client, extra_headers={"x-amf-deadline-ms": "0.000001"})
        assert (caught.value.status_code, caught.value.code) == (504, "deadline_exceeded")
        assert caught.value.response.headers["x-should-retry"] == "false"
        assert built.requests() == {504: 1}
        assert built.fabric.totals()["opened"] == 0


async def test_a_cancelled_run_is_not_begun_again_by_the_sdk() -> None:
    async with house(EmulatorConfig(model=MODEL, time_scale=SCALE)) as built, client_of(built) as client:
        fields = {"max_tokens": 50_000, "extra_body": {"ignore_eos": True, "amf": {"run_id": "r"}}}
        whole = asyncio.create_task(chat(client, **fields))
        stream = await chat(client, stream=True, **fields)
        await until(lambda: len(built.fabric.dispatches()) == 2)
        assert await client.post(f"{built.gateway.url}/amf/v1/runs/r/cancel", cast_to=object) == {"cancelled_calls": 2}
        with pytest.raises(openai.APIStatusError) as caught:
            await whole
        assert (caught.value.status_code, caught.value.code) == (410, "run_cancelled")
        with pytest.raises(openai.APIError) as broken:
            async for _ in stream:
                pass
        assert broken.value.code == "run_cancelled"
        assert built.requests()[410] == 1 and len(built.fabric.dispatches()) == 2
        emulator = built.emulators[0]
        await until(lambda: emulator.live.pending == 0)  # the engine was told too


@pytest.mark.parametrize("named", [True, False], ids=["explicit", "zero-headers"])
async def test_a_refused_pipeline_is_repeated_until_there_is_room(named: bool) -> None:
    config = FabricConfig(max_live_pipelines=1)
    async with (
        house(EmulatorConfig(model=MODEL, time_scale=SCALE), fabric=config) as built,
        client_of(built) as client,
    ):
        await chat(client, "first", extra_body={"amf": {"run_id": "first"}})
        identity = {"extra_body": {"amf": {"run_id": "second"}}} if named else {}
        second = asyncio.create_task(
            client.chat.completions.with_raw_response.create(
                model=MODEL, messages=[{"role": "user", "content": "second"}], max_tokens=20, **identity
            )
        )
        await until(lambda: built.requests().get(429, 0) >= 1)
        assert built.count("amf_refused_calls_total", code="pipeline_admission_refused") >= 1
        await client.post(f"{built.gateway.url}/amf/v1/runs/first/close", cast_to=object)
        answer = await second
        assert answer.parse().choices[0].message.content
        assert answer.retries_taken == built.requests()[429]
        assert built.requests()[200] == 2
        run = answer.headers["x-amf-run-id"]
        assert len(built.fabric.calls_of(run)) == 1 + answer.retries_taken, "a repeated request stays in its run"
        assert built.fabric.totals()["opened"] == 2


async def test_the_refusal_says_when_to_come_back() -> None:
    config = FabricConfig(max_live_pipelines=1)
    async with (
        house(EmulatorConfig(model=MODEL, time_scale=SCALE), fabric=config) as built,
        client_of(built, max_retries=0) as client,
    ):
        await chat(client, extra_body={"amf": {"run_id": "first"}})
        with pytest.raises(openai.RateLimitError) as caught:
            await chat(client, extra_body={"amf": {"run_id": "second"}})
        headers = caught.value.response.headers
        assert caught.value.code == "pipeline_admission_refused" and headers["x-should-retry"] == "true"
        assert 0 < int(headers["retry-after-ms"]) <= 1000 * int(headers["retry-after"])
        await chat(client, extra_body={"amf": {"run_id": "first"}})  # an admitted pipeline is never refused


async def test_a_client_that_leaves_frees_its_worker() -> None:
    async with house(EmulatorConfig(model=MODEL, time_scale=SCALE)) as built, client_of(built) as client:
        stream = await chat(client, stream=True, max_tokens=50_000, extra_body={"ignore_eos": True})
        await until(lambda: bool(built.fabric.events(FirstToken)))
        await stream.close()
        await until(lambda: built.gateway.driver.open_calls() == 0 and built.emulators[0].live.pending == 0)
        assert built.fabric.totals()["cancelled"] == 1
        assert all(w["committed_tokens"] == 0 for w in built.fabric.worker_reports())


async def test_a_clients_timeout_is_a_cancel_and_its_retry_the_same_run() -> None:
    async with house(EmulatorConfig(model=MODEL, time_scale=1.0)) as built:
        async with client_of(built, max_retries=1, timeout=0.3) as client:
            with pytest.raises(openai.APITimeoutError):
                await chat(client, max_tokens=50_000, extra_body={"ignore_eos": True})
        await until(lambda: built.fabric.totals()["cancelled"] == 2)
        assert built.fabric.totals()["opened"] == 1

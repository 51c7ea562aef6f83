"""The gateway before emulated workers: counts agree with the engines' own, exact prefixes are true, death is survived."""

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
from gateway_kit import FAST, Client, chat_messages, until

from amf.config import PoolConfig, ServeConfig, ServerConfig, WorkerConfig
from amf.emulator import Emulator, EmulatorConfig, running
from amf.gateway.service import Gateway, running_gateway

SCALE = 50.0
LONG = "The quick brown fox jumps over the lazy dog. " * 120


async def start(
    stack: AsyncExitStack, *, workers: int = 2, exact: bool = False, events: bool = False
) -> tuple[Gateway, Client, list[Emulator]]:
    emulators = [
        await stack.enter_async_context(
            running(
                EmulatorConfig(
                    time_scale=SCALE, kv_tokens=20_000, seed=i, kv_events_port=0 if exact or events else None
                )
            )
        )
        for i in range(workers)
    ]
    config = ServeConfig(
        server=ServerConfig(port=0, time_scale=SCALE, shutdown_grace_s=0.5),
        workers=tuple(WorkerConfig(url=e.url, name=f"w{i}", gpu="h200") for i, e in enumerate(emulators)),
        pools={"llama-3.1-8b": PoolConfig(tokenizer="engine")} if exact else {},
        limits=FAST,
    )
    gateway = await stack.enter_async_context(running_gateway(config))
    session = await stack.enter_async_context(aiohttp.ClientSession())
    return gateway, Client(gateway.url, session), emulators


def request(*contents: str, **fields: Any) -> dict[str, Any]:
    return {"model": "llama-3.1-8b", "messages": chat_messages(*contents), "max_tokens": 20, **fields}


async def metric(client: Client, url: str, name: str) -> float:
    async with client.session.get(url + "/metrics") as response:
        lines = (await response.text()).splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{"))


async def test_counts_agree_with_the_engines_own() -> None:
    async with AsyncExitStack() as stack:
        gateway, client, emulators = await start(stack)
        for turn in range(4):
            history = [word for i in range(turn) for word in (LONG + str(i), f"a{i}")]
            options = {"stream": True, "stream_options": {"include_usage": True}} if turn % 2 else {}
            body = request(*history, LONG + str(turn), **options)
            assert (await client.request("POST", "/v1/chat/completions", json=body)).status == 200
        reported = await metric(client, gateway.url, "amf_drift_calls_total")
        assert reported == 4 and await metric(client, gateway.url, "amf_believed_warm_tokens") > 1000
        off = await metric(client, gateway.url, "amf_drift_tokens_total")
        drift = [report["drift"] for report in gateway.fabric.worker_reports()]
        assert off == sum(
            each[f"{kind}_tokens"] for each in drift for kind in ("overestimated", "underestimated", "forgotten")
        )
        totals = gateway.fabric.totals()
        prompt = sum([await metric(client, e.url, "vllm:prompt_tokens_total") for e in emulators])
        cached = sum([await metric(client, e.url, "vllm:prompt_tokens_cached_total") for e in emulators])
        assert totals["prompt_tokens"] == prompt > 0
        assert totals["cached_tokens"] == cached > 0
        assert totals["finished"] == 4


async def test_one_conversation_stays_where_it_is_warm() -> None:
    async with AsyncExitStack() as stack:
        _, client, _ = await start(stack)
        seen: dict[str, set[str]] = {}
        for turn in range(3):
            for name in ("x", "y", "z"):
                history = [word for i in range(turn) for word in (name + str(i) + LONG, f"a{i}")]
                answer = await client.request(
                    "POST", "/v1/chat/completions", json=request(*history, name + str(turn) + LONG)
                )
                seen.setdefault(name, set()).add(answer.headers["x-amf-worker"])
        assert all(len(workers) == 1 for workers in seen.values())


async def test_exact_prefixes_are_what_the_engine_holds() -> None:
    async with AsyncExitStack() as stack:
        gateway, client, _ = await start(stack, workers=1, exact=True)
        body = request(LONG)
        first = await client.request("POST", "/v1/chat/completions", json=body)
        assert first.headers["x-amf-warm-tokens"] == "0"
        stored = gateway.metrics.events.labels("PrefixStored")
        await until(lambda: stored._value.get() > 0)
        again = await client.request("POST", "/v1/chat/completions", json=body)
        usage = json.loads(again.body)["usage"]
        warm, cached = int(again.headers["x-amf-warm-tokens"]), usage["prompt_tokens_details"]["cached_tokens"]
        assert warm % 16 == 0 and abs(warm - cached) <= 16 and cached > 1000


@pytest.mark.parametrize("events", [True, False])
async def test_without_a_tokenizer_evictions_by_traffic_around_the_gateway_are_seen_where_events_name_requests(
    events: bool,
) -> None:
    async with AsyncExitStack() as stack:
        gateway, client, emulators = await start(stack, workers=1, events=events)
        seen = gateway.metrics.events
        first = await client.request("POST", "/v1/chat/completions", json=request(LONG))
        assert first.headers["x-amf-warm-tokens"] == "0"
        if events:
            await until(lambda: seen.labels("PrefixStored")._value.get() > 0)
        again = await client.request("POST", "/v1/chat/completions", json=request(LONG))
        cached = json.loads(again.body)["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert abs(int(again.headers["x-amf-warm-tokens"]) - cached) < 300 and cached > 1000
        around = Client(emulators[0].url, client.session)
        for number in range(25):  # 33,000 tokens, where 20,000 fit
            assert (
                await around.request("POST", "/v1/chat/completions", json=request(f"{number} {LONG}"))
            ).status == 200
        if events:
            await until(lambda: seen.labels("PrefixEvicted")._value.get() > 0)
            now_s = gateway.driver.clock.now_s() + gateway.fabric.config.event_lag_s
            await until(lambda: gateway.driver.clock.now_s() > now_s)
        last = await client.request("POST", "/v1/chat/completions", json=request(LONG))
        assert json.loads(last.body)["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        assert (int(last.headers["x-amf-warm-tokens"]) < 300) is events, "it believes in what it does not see"


async def test_a_worker_killed_in_mid_stream_loses_only_what_had_begun() -> None:
    async with AsyncExitStack() as stack:
        gateway, client, emulators = await start(stack)
        bodies = [request(f"{LONG} {i}", max_tokens=4000, stream=True) for i in range(12)]
        calls = [asyncio.create_task(client.request("POST", "/v1/chat/completions", json=body)) for body in bodies]
        await until(lambda: min(gateway.driver.in_flight[name] for name in ("w0", "w1")) >= 3)
        emulators[0].die()
        answers = await asyncio.gather(*calls)
        broken = [answer for answer in answers if b"upstream_failed" in answer.body]
        whole = [answer for answer in answers if answer.body.endswith(b"data: [DONE]\n\n")]
        assert len(whole) + len(broken) == 12
        assert all(answer.headers["x-amf-worker"] == "w0" for answer in broken)
        assert gateway.driver.open_calls() == 0
        gateway.fabric.check_invariants()


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank"])
async def test_the_other_routes(path: str) -> None:
    async with AsyncExitStack() as stack:
        emulator = await stack.enter_async_context(running(EmulatorConfig(model="bge-m3", time_scale=SCALE)))
        config = ServeConfig(server=ServerConfig(port=0), workers=(WorkerConfig(url=emulator.url),), limits=FAST)
        gateway = await stack.enter_async_context(running_gateway(config))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        body = {"model": "bge-m3", "input": ["a", "b"], "query": "q", "documents": ["one", "two"]}
        answer = await Client(gateway.url, session).request("POST", path, json=body)
        assert answer.status == 200, answer.body

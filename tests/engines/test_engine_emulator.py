"""The vLLM adapter against the emulator: both sides were written from vLLM's wire, not from each other."""

import asyncio
import json
import random
from collections import Counter
from typing import Any

import aiohttp
import pytest

from amf.emulator import Emulator, EmulatorConfig, Faults, running
from amf.engines.choose import connect
from amf.engines.engine import Engine, EngineError, EngineRequest
from amf.engines.keys import root_key, token_keys
from amf.engines.options import EngineLimits, EngineOptions
from amf.engines.vllm import VllmEngine
from engine_belief import believing, until

LIMITS = EngineLimits(observe_interval_s=0.02, head_timeout_s=20.0, stall_timeout_s=20.0)
BLOCK = 16


def config(**more: Any) -> EmulatorConfig:
    return EmulatorConfig(
        **({"kv_tokens": 4096, "block_tokens": BLOCK, "time_scale": 200.0, "kv_events_port": 0} | more)
    )


def request(path: str = "/v1/completions", urgency_s: float = 0.0, **body: Any) -> EngineRequest:
    return EngineRequest(
        request_id="r1", path=path, body=json.dumps(body).encode(), headers={}, urgency_s=urgency_s, session_id="run-1"
    )


async def answer(engine: Engine, attempt: EngineRequest) -> tuple[int, bytes]:
    async with engine.generate(attempt) as upstream:
        return upstream.status, b"".join([chunk async for chunk in upstream.chunks()])


def truth(emulator: Emulator) -> Counter[int]:
    return emulator.worker._scheduler.pool.contents()


def prompts(rng: random.Random, count: int) -> list[dict[str, Any]]:
    """Prompts of shared and own parts, some salted, together several times what the cache holds."""
    shared = [[rng.randrange(2**31) for _ in range(rng.randrange(200, 600))] for _ in range(4)]
    bodies = []
    for _ in range(count):
        prompt = rng.choice(shared) + [rng.randrange(2**31) for _ in range(rng.randrange(400))]
        salt = {"cache_salt": "tenant"} if rng.random() < 0.3 else {}
        bodies.append({"prompt": prompt, "max_tokens": rng.randrange(1, 80), **salt})
    return bodies


async def test_belief_equals_the_emulators_truth(session: aiohttp.ClientSession) -> None:
    async with running(config()) as emulator:
        engine = await connect(emulator.url, session, EngineOptions(limits=LIMITS))
        async with believing(engine) as belief:
            bodies = prompts(random.Random(3), 60)
            for start in range(0, len(bodies), 6):
                answers = await asyncio.gather(*(answer(engine, request(**body)) for body in bodies[start : start + 6]))
                assert {status for status, _ in answers} == {200}
            await until(lambda: +belief.copies == truth(emulator))
            assert sum(belief.copies.values()) > 100
            assert (belief.index.orphans, belief.index.unknown, belief.clears) == (0, 0, [])
            assert belief.sessions == {"run-1"}


async def test_keys_computed_before_are_the_ones_reported(session: aiohttp.ClientSession) -> None:
    prompt = list(range(1000, 1000 + 10 * BLOCK + 3))
    async with running(config()) as emulator:
        engine = VllmEngine(emulator.url, session, EngineOptions(limits=LIMITS))
        async with believing(engine) as belief:
            await answer(engine, request(prompt=prompt, max_tokens=1))
            await answer(engine, request(prompt=prompt, max_tokens=1, cache_salt="s"))
            expected = token_keys(prompt, BLOCK) + token_keys(prompt, BLOCK, root_key("s"))
            await until(lambda: all(belief.copies[key] == 1 for key in expected))


async def test_belief_in_what_was_lost_does_not_last(session: aiohttp.ClientSession) -> None:
    async with running(config(faults=Faults(drop_events=0.05), seed=4)) as emulator:
        engine = VllmEngine(emulator.url, session, EngineOptions(limits=LIMITS))
        async with believing(engine) as belief:
            for body in prompts(random.Random(5), 80):
                await answer(engine, request(**body))
            assert belief.clears
            assert all(reason.startswith("events lost") for reason in belief.clears)
            filler = random.Random(6)  # a loss is noticed with the next batch that arrives
            async with asyncio.timeout(15):
                while not +belief.copies or +belief.copies - truth(emulator):
                    await answer(engine, request(prompt=[filler.randrange(99) for _ in range(BLOCK)], max_tokens=1))


async def test_a_cache_reset_is_told(session: aiohttp.ClientSession) -> None:
    async with running(config()) as emulator:
        engine = VllmEngine(emulator.url, session, EngineOptions(limits=LIMITS))
        async with believing(engine) as belief:
            await answer(engine, request(prompt=[1] * 100, max_tokens=1))
            await until(lambda: belief.copies)
            assert emulator.live.clear_cache()
            await answer(engine, request(prompt=[2] * 100, max_tokens=1))
            await until(lambda: belief.clears == ["the engine reset its cache"] and belief.copies == truth(emulator))


@pytest.mark.parametrize("events", [True, False])
async def test_probe(session: aiohttp.ClientSession, events: bool) -> None:
    async with running(config(kv_events_port=0 if events else None, served_name="tiny")) as emulator:
        engine = await connect(emulator.url, session)
        info = await engine.probe()
        assert (info.engine, info.models, info.block_tokens, info.kv_tokens) == ("vllm", ("tiny",), BLOCK, 4096)
        assert info.max_model_tokens == 4096
        assert info.capabilities.kv_events is events
        assert await engine.healthy()


async def test_streams_and_answers_agree_with_a_bare_client(session: aiohttp.ClientSession) -> None:
    """The same request with and without the adapter, but for ids and times, is the same answer."""
    body = {"messages": [{"role": "user", "content": "hello " * 50}], "max_tokens": 40, "model": "llama-3.1-8b"}
    async with running(config()) as emulator:
        engine = VllmEngine(emulator.url, session, EngineOptions(limits=LIMITS))
        for stream in (False, True):
            attempt = request("/v1/chat/completions", stream=stream, **body)
            status, ours = await answer(engine, attempt)
            async with session.post(emulator.url + attempt.path, data=attempt.body) as bare:
                theirs = await bare.read()
            assert status == bare.status == 200
            assert contents(ours) == contents(theirs) != ""
            assert ours.endswith(b"data: [DONE]\n\n") is stream


def contents(body: bytes) -> str:
    """The text of an answer, streamed or not."""
    if not body.startswith(b"data: "):
        return json.loads(body)["choices"][0]["message"]["content"]
    chunks = [json.loads(line[6:]) for line in body.splitlines() if line.startswith(b"data: {")]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


async def test_leaving_early_frees_the_engine(session: aiohttp.ClientSession) -> None:
    async with running(config(time_scale=1.0)) as emulator:
        engine = VllmEngine(emulator.url, session, EngineOptions(limits=LIMITS))
        async with engine.generate(request(prompt=[1] * 64, max_tokens=3000, stream=True)) as upstream:
            await anext(aiter(upstream.chunks()))
            load = await engine.load()
            assert load is not None
            assert load.running == 1
        async with asyncio.timeout(5):
            while (load := await engine.load()) is None or load.running:
                await asyncio.sleep(0.01)


async def test_urgent_calls_overtake(session: aiohttp.ClientSession) -> None:
    """One slot, taken; of those that wait for it, the least urgent was sent first and is served last."""
    async with running(config(scheduling="priority", max_running=1, time_scale=1.0)) as emulator:
        engine = VllmEngine(emulator.url, session, EngineOptions(limits=LIMITS, priority=True))
        served: list[float] = []

        async def send(urgency_s: float) -> None:
            status, _ = await answer(engine, request(urgency_s=urgency_s, prompt=[1] * 64, max_tokens=2))
            assert status == 200
            served.append(urgency_s)

        occupying = engine.generate(request(prompt=[1] * 64, max_tokens=3000, stream=True))
        async with asyncio.timeout(15), asyncio.TaskGroup() as group, occupying:
            for waiting, urgency_s in enumerate([9.0, 5.0, -1.0], start=1):
                group.create_task(send(urgency_s))
                while (load := await engine.load()) is None or load.waiting < waiting:
                    await asyncio.sleep(0.001)
        assert served == [-1.0, 5.0, 9.0]


@pytest.mark.parametrize(
    "faults",
    [Faults(die_after_tokens=5), Faults(stall_after_s=0.2), Faults(garbage=1.0)],
    ids=["die", "stall", "garbage"],
)
async def test_a_failing_engine_ends_as_an_engine_error(session: aiohttp.ClientSession, faults: Faults) -> None:
    limits = EngineLimits(head_timeout_s=1.0, stall_timeout_s=0.5)
    async with running(config(faults=faults, time_scale=1.0)) as emulator:
        engine = VllmEngine(emulator.url, session, EngineOptions(limits=limits))
        attempt = request("/v1/completions", prompt=[1] * 64, max_tokens=1000, stream=True)
        try:
            _, body = await asyncio.wait_for(answer(engine, attempt), 10)
        except EngineError:
            return
        assert faults.garbage, "only garbage may look like an answer to the adapter, which does not read bodies"
        assert not body.endswith(b"data: [DONE]\n\n")

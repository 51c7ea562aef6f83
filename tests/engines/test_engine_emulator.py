"""The vLLM adapter against the emulator as seen from inside: its true cache, and its faults. What is promised from outside is
in test_contract_emulator.py."""

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
from amf.engines.options import EngineLimits, EngineOptions
from amf.engines.vllm import VllmEngine
from engine_belief import believing, until

LIMITS = EngineLimits(observe_interval_s=0.02, head_timeout_s=20.0, stall_timeout_s=20.0)
BLOCK = 16


def config(**more: Any) -> EmulatorConfig:
    return EmulatorConfig(
        **({"kv_tokens": 4096, "block_tokens": BLOCK, "time_scale": 200.0, "kv_events_port": 0} | more)
    )


def request(**body: Any) -> EngineRequest:
    return EngineRequest(
        request_id="r1", path="/v1/completions", body=json.dumps(body).encode(), headers={}, session_id="run-1"
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


@pytest.mark.parametrize(
    "faults",
    [Faults(die_after_tokens=5), Faults(stall_after_s=0.2), Faults(garbage=1.0)],
    ids=["die", "stall", "garbage"],
)
async def test_a_failing_engine_ends_as_an_engine_error(session: aiohttp.ClientSession, faults: Faults) -> None:
    limits = EngineLimits(head_timeout_s=1.0, stall_timeout_s=0.5)
    async with running(config(faults=faults, time_scale=1.0)) as emulator:
        engine = VllmEngine(emulator.url, session, EngineOptions(limits=limits))
        attempt = request(prompt=[1] * 64, max_tokens=1000, stream=True)
        try:
            _, body = await asyncio.wait_for(answer(engine, attempt), 10)
        except EngineError:
            return
        assert faults.garbage, "only garbage may look like an answer to the adapter, which does not read bodies"
        assert not body.endswith(b"data: [DONE]\n\n")

"""What the emulator's tests share: a fast worker, its HTTP client, its metrics as numbers, and waiting for a fact."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from amf.emulator import Emulator, EmulatorConfig, running

FAST = EmulatorConfig(time_scale=1000.0, kv_tokens=200_000, seed=3)


@asynccontextmanager
async def served(**changes: Any) -> AsyncIterator[tuple[Emulator, aiohttp.ClientSession]]:
    async with running(replace(FAST, **changes)) as emulator, aiohttp.ClientSession(emulator.url) as client:
        yield emulator, client


def chat(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **fields}


async def post(client: aiohttp.ClientSession, path: str, body: Any, **headers: str) -> dict[str, Any]:
    """The answer to a request that must succeed."""
    async with client.post(path, json=body, headers=headers) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def numbers(client: aiohttp.ClientSession) -> dict[str, float]:
    """Samples of /metrics by name without `vllm:`; a sample with labels of its own as `name{value}`."""
    async with client.get("/metrics") as response:
        text = await response.text()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            own = [value for label, value in sample.labels.items() if label not in ("engine", "model_name")]
            name = sample.name.removeprefix("vllm:")
            found[f"{name}{{{','.join(own)}}}" if own else name] = sample.value
    return found


async def until(fact: Callable[[], bool], limit_s: float = 5.0) -> None:
    """Wait for a fact, fail if it does not come about."""
    async with asyncio.timeout(limit_s):
        while not fact():
            await asyncio.sleep(0.002)

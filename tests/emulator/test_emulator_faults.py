"""Each fault does what it says, and the rest of the emulator goes on."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest
from emulator_kit import chat, numbers, post, served, until

from amf.emulator import Faults

BODY = {"prompt": "word" * 640, "max_tokens": 2}
ENDLESS = {"prompt": "go", "max_tokens": 100_000, "ignore_eos": True, "stream": True}


async def test_blocks_vanish_without_an_event():
    faults = Faults(evict_silently_tokens_per_s=250.0)  # 640 cached tokens last 2.6 s of the worker's time
    async with served(kv_events_port=0, time_scale=10.0, faults=faults) as (emulator, client):
        await post(client, "/v1/completions", BODY)
        assert emulator.worker.stats.cached_free_blocks > 0
        assert emulator.live.kv_feed is not None
        published = emulator.live.kv_feed.publisher.next_sequence

        def gone() -> bool:
            emulator.live.catch_up()
            return emulator.worker.stats.cached_free_blocks == 0

        await until(gone)
        assert emulator.live.kv_feed.publisher.next_sequence == published
        again = await post(client, "/v1/completions", BODY)
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


async def test_slow_takes_so_many_times_as_long():
    took = []
    for factor in (1.0, 3.0):
        async with served(faults=Faults(slow=factor)) as (_, client):
            await post(client, "/v1/completions", {"prompt": "go", "max_tokens": 300, "ignore_eos": True})
            took.append((await numbers(client))["e2e_request_latency_seconds_sum"])
    assert took[1] == pytest.approx(3 * took[0], rel=1e-6)


@pytest.mark.parametrize("faults", [Faults(die_after_s=0.05), Faults(die_after_tokens=20)])
async def test_dying_breaks_open_streams_and_refuses_new_connections(faults: Faults):
    async with served(faults=faults, time_scale=2.0) as (emulator, client):
        with pytest.raises(aiohttp.ClientError):
            async with asyncio.timeout(5), client.post("/v1/completions", json=ENDLESS) as response:
                async for _ in response.content:
                    pass
        with pytest.raises(aiohttp.ClientConnectorError):
            await client.get("/health")
        await until(lambda: emulator.worker.stats.running == 0)


async def test_a_stalled_worker_accepts_and_looks_healthy_but_never_answers():
    async with served(faults=Faults(stall_after_s=0.3), time_scale=1.0) as (_, client):
        got = 0
        async with client.post("/v1/completions", json=ENDLESS) as response:
            with pytest.raises(TimeoutError):
                while True:
                    got += len(await asyncio.wait_for(response.content.readline(), 0.3))
            async with client.get("/health") as health:
                assert health.status == 200
            async with client.post("/v1/completions", json=ENDLESS) as late:
                assert late.status == 200
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(late.content.readline(), 0.2)
    assert got > 0


async def test_a_driver_that_fails_leaves_no_client_waiting(monkeypatch: pytest.MonkeyPatch):
    async with served(time_scale=1.0) as (emulator, client), client.post("/v1/completions", json=ENDLESS) as response:
        await response.content.readline()
        monkeypatch.setattr(emulator.worker, "progress", {}.__getitem__)
        with pytest.raises(aiohttp.ClientError):
            async with asyncio.timeout(5):
                await response.read()


@pytest.mark.parametrize("stream", [False, True])
async def test_garbage_is_cut_off_or_not_json(stream: bool):
    kinds = set()
    async with served(faults=Faults(garbage=1.0)) as (_, client):
        for number in range(16):
            body = chat(f"question {number}", max_tokens=5, stream=stream)
            kinds.add(await spoilt(client, body))
    assert kinds == {"cut", "noise"}


async def spoilt(client: aiohttp.ClientSession, body: dict[str, Any]) -> str:
    try:
        async with asyncio.timeout(5), client.post("/v1/chat/completions", json=body) as response:
            assert response.status == 200
            content = await response.read()
    except aiohttp.ClientError:
        return "cut"
    with pytest.raises(ValueError):
        for line in content.split(b"\n\n"):
            json.loads(line.removeprefix(b"data: ") or b"{}")
    return "noise"


async def test_garbage_has_its_probability_and_its_seed():
    async def bad(seed: int) -> list[int]:
        async with served(faults=Faults(garbage=0.3), seed=seed) as (_, client):
            found = []
            for number in range(60):
                try:
                    async with client.post("/v1/chat/completions", json=chat("x", max_tokens=1)) as response:
                        json.loads(await response.read())
                except (aiohttp.ClientError, ValueError):
                    found.append(number)
            return found

    first, again, other = await bad(1), await bad(1), await bad(2)
    assert first == again != other
    assert 6 < len(first) < 32


@pytest.mark.parametrize(
    "wrong", [{"garbage": 1.5}, {"drop_events": -0.1}, {"slow": 0.0}, {"die_after_s": -1.0}, {"stall_after_s": -1.0}]
)
def test_impossible_faults_are_refused(wrong: dict[str, float]):
    with pytest.raises(ValueError):
        Faults(**wrong)  # type: ignore[arg-type]

"""What a real SGLang does beyond the contract (test_live_contract.py), and the gateway on it."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from gateway_truth import GatewayTruth, On

from amf.engines.engine import EngineRequest, LoadReport
from amf.engines.http import open_session
from amf.engines.keys import root_key, token_keys
from amf.engines.options import EngineLimits, EngineOptions
from amf.engines.sglang import SglangEngine
from contract.under_test import COMPLETIONS, Answer, complete, prompt
from engine_belief import believing, until
from real.server import MODEL_NAME
from real.sglang import SglangServer, SglangSetup, sglang

SETUP = SglangSetup(kv_tokens=8192, max_running=2)
LIMITS = EngineLimits(observe_interval_s=0.05, control_timeout_s=20.0)
LIMIT_S = 120.0
_serials = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SglangServer]:
    with sglang(SETUP, tmp_path_factory.mktemp("sglang")) as server:
        yield server


@pytest.fixture
async def engine(server: SglangServer) -> AsyncIterator[SglangEngine]:
    async with open_session() as session:
        engine = SglangEngine(server.url, session, EngineOptions(limits=LIMITS))
        await engine.probe()
        yield engine
        await engine.close()


def call(urgency_s: float = 0.0, **body: Any) -> EngineRequest:
    """For one token unless `body` says otherwise. Its id is its own: SGLang aborts the id of each stream two seconds after
    the stream's end, whoever has it then."""
    whole = {"model": MODEL_NAME, "ignore_eos": True, "max_tokens": 1, **body}
    return EngineRequest(
        request_id=f"call-{next(_serials)}",
        path=COMPLETIONS,
        body=json.dumps(whole).encode(),
        headers={"content-type": "application/json"},
        urgency_s=urgency_s,
        session_id="run-1",
    )


def long_call(name: str, urgency_s: float = 0.0) -> EngineRequest:
    return call(urgency_s, prompt=prompt(name, 100), max_tokens=3000, stream=True)


async def until_load(engine: SglangEngine, holds: Callable[[LoadReport], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while (load := await engine.load()) is None or not holds(load):
            await asyncio.sleep(0.02)


async def test_a_block_is_held_once_and_a_salted_one_under_a_name_of_its_own(engine: SglangEngine) -> None:
    """However many calls compute it at the same time."""
    ours = prompt("held once", 325)
    plain, salted = (token_keys(ours, SETUP.page_tokens, root_key(salt)) for salt in ("", "tenant"))
    async with believing(engine) as belief:
        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(complete(engine, call(prompt=ours)))
        await until(lambda: all(belief.copies[key] for key in plain))
        assert (await complete(engine, call(prompt=ours, cache_salt="tenant"))).cached_tokens == 0
        await until(lambda: all(belief.copies[key] for key in salted))
        assert (await complete(engine, call(prompt=ours))).cached_tokens == 320
        assert set((+belief.copies).values()) == {1}


async def test_the_more_urgent_is_served_first_and_takes_the_place_of_what_can_wait(engine: SglangEngine) -> None:
    """Both slots are taken. Within a second of difference those that are running go on, beyond it the least urgent makes way
    until all that are more urgent are served; of these the least urgent was sent first and is served last."""
    served: list[float] = []

    async def send(urgency_s: float) -> None:
        await complete(engine, call(urgency_s, prompt=prompt(f"urgent {urgency_s}", 100), max_tokens=10))
        served.append(urgency_s)

    first, second = engine.generate(long_call("first", -99.0)), engine.generate(long_call("second", 20.0))
    async with asyncio.timeout(LIMIT_S), first as most_urgent, second as least_urgent:
        for upstream in (most_urgent, least_urgent):
            await anext(aiter(upstream.chunks()))
        async with asyncio.TaskGroup() as group:
            for waiting, urgency_s in enumerate([19.8, 19.5, 19.2], start=1):
                group.create_task(send(urgency_s))
                await until_load(engine, lambda load, waiting=waiting: load.waiting >= waiting)
            assert served == []
            group.create_task(send(10.0))
        assert served == [10.0, 19.2, 19.5, 19.8]


async def test_a_call_is_aborted_by_its_id_and_no_other_with_it(engine: SglangEngine) -> None:
    """The engine aborts whatever begins with the id that it is told, and a second attempt's begins with the first's."""
    left = replace(long_call("left"), request_id="attempt")
    kept = replace(long_call("kept"), request_id="attempt-2")
    async with asyncio.timeout(LIMIT_S), engine.generate(left) as leaving, engine.generate(kept) as keeping:
        chunks = aiter(keeping.chunks())
        await anext(chunks)
        engine.left_early(left)
        rest = b"".join([chunk async for chunk in leaving.chunks()])
        assert Answer(leaving.status, rest).ends == {0: "abort"}
        await until_load(engine, lambda load: load.running == 1)
        await anext(chunks)
    await until_load(engine, lambda load: not load.running and not load.kv_used_ratio)


class TestGateway(GatewayTruth):
    @pytest.fixture
    def on(self, server: SglangServer) -> On:
        return On(url=server.url, block_tokens=SETUP.page_tokens, kv_tokens=SETUP.kv_tokens)

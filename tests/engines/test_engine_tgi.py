"""What the TGI adapter adds: the probe across releases, load from its gauges, and its own status for a failed generation."""

from contextlib import aclosing
from typing import Any

import aiohttp
import pytest
from engine_fakes import FakeVllm, serving
from fake_tgi import METRICS, MODEL, FakeTgi

from amf.engines.choose import connect
from amf.engines.engine import EngineError, EngineInfo, EngineRequest, LoadReport
from amf.engines.openai import OpenAIEngine
from amf.engines.options import EngineLimits, EngineOptions
from amf.engines.tgi import TgiEngine
from amf.engines.vllm import VllmEngine

LOAD = LoadReport(running=3, waiting=2, kv_used_ratio=0.25)


def tgi(url: str, session: aiohttp.ClientSession) -> TgiEngine:
    return TgiEngine(url, session, EngineOptions(limits=EngineLimits(observe_interval_s=0.02)))


async def test_probe_tells_all_that_the_server_tells(session: aiohttp.ClientSession) -> None:
    async with serving(FakeTgi().app()) as url:
        assert await tgi(url, session).probe() == EngineInfo(
            engine="tgi",
            models=(MODEL,),
            version="3.3.6-dev0",
            kv_tokens=133120,
            max_model_tokens=16384,
            max_running=128,
        )


async def test_probe_of_an_old_release(session: aiohttp.ClientSession) -> None:
    """No /v1/models; the batch's limits stand in /info, and its metrics are empty before the first call."""
    fake = FakeTgi()
    assert fake.info is not None
    fake.models, fake.metrics = None, ""
    fake.info |= {"max_batch_total_tokens": 32000, "max_batch_size": 32, "max_input_length": 1024, "version": "1.4.0"}
    async with serving(fake.app()) as url:
        engine = await connect(url, session)
        assert type(engine) is TgiEngine
        info = await engine.probe()
        assert (info.models, info.version, info.kv_tokens, info.max_running) == ((MODEL,), "1.4.0", 32000, 32)
        assert await engine.load() is None


@pytest.mark.parametrize("info", [None, [], {}, {"max_total_tokens": "many", "version": 3, "max_batch_size": None}])
async def test_probe_of_a_server_that_tells_less(session: aiohttp.ClientSession, info: Any) -> None:
    fake = FakeTgi()
    fake.info, fake.metrics = info, ""
    async with serving(fake.app()) as url:
        assert await tgi(url, session).probe() == EngineInfo(engine="tgi", models=(MODEL,))
        fake.models = None
        with pytest.raises(EngineError, match="names no model"):
            await tgi(url, session).probe()


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        (METRICS, LOAD),
        ("tgi_batch_max_total_tokens 1000\n", LoadReport(running=0, waiting=0, kv_used_ratio=0.0)),
        ("tgi_queue_size 4\n", LoadReport(running=0, waiting=4, kv_used_ratio=0.0)),
        (METRICS.replace("33280", "999999"), LoadReport(running=3, waiting=2, kv_used_ratio=1.0)),
        ("tgi_queue_size NaN\n", None),
        ("", None),
    ],
)
async def test_load(session: aiohttp.ClientSession, page: str, expected: LoadReport | None) -> None:
    fake = FakeTgi()
    fake.metrics = page
    async with serving(fake.app()) as url:
        assert await tgi(url, session).load() == expected


async def test_load_is_observed(session: aiohttp.ClientSession) -> None:
    async with serving(FakeTgi().app()) as url, aclosing(tgi(url, session).observe()) as observations:
        assert [await anext(observations), await anext(observations)] == [LOAD, LOAD]


@pytest.mark.parametrize(
    ("info", "owner", "expected"),
    [
        (FakeTgi().info, "vllm", TgiEngine),
        ({"model_id": "bge", "max_input_length": 512, "max_batch_tokens": 16384}, "me", OpenAIEngine),  # embeddings
        ({"version": "1"}, "vllm", VllmEngine),
        (None, "me", OpenAIEngine),
    ],
)
async def test_it_is_recognised_by_its_info(
    session: aiohttp.ClientSession, info: Any, owner: str, expected: type
) -> None:
    fake = FakeVllm()
    fake.owned_by, fake.metrics = owner, ""
    app = fake.app()

    async def told(_: Any) -> aiohttp.web.Response:
        return aiohttp.web.Response(status=404) if info is None else aiohttp.web.json_response(info)

    app.router.add_get("/info", told)
    async with serving(app) as url:
        assert type(await connect(url, session)) is expected


@pytest.mark.parametrize("status", [422, 424])
async def test_a_failed_generation_is_the_workers_fault(session: aiohttp.ClientSession, status: int) -> None:
    fake = FakeTgi()
    fake.chat_status = status
    request = EngineRequest(request_id="r", path="/v1/chat/completions", body=b"{}", headers={})
    async with serving(fake.app()) as url:
        attempt = tgi(url, session).generate(request)
        if status == 422:  # this one is the client's, and is passed on
            async with attempt as upstream:
                assert upstream.status == 422
        else:
            with pytest.raises(EngineError, match="failed while generating"):
                async with attempt:
                    pass

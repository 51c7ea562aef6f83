"""What the llama.cpp adapter adds: the probe, and load from whichever endpoints the server's flags leave open."""

from contextlib import aclosing
from typing import Any

import aiohttp
import pytest
from engine_fakes import serving
from fake_llamacpp import METRICS, FakeLlamaCpp, slot

from amf.engines.choose import connect
from amf.engines.engine import Capabilities, EngineInfo, EngineRequest, LoadReport
from amf.engines.llamacpp import LlamaCppEngine
from amf.engines.openai import OpenAIEngine
from amf.engines.options import EngineLimits, EngineOptions

EAGER = EngineLimits(observe_interval_s=0.02)


def llamacpp(url: str, session: aiohttp.ClientSession) -> LlamaCppEngine:
    return LlamaCppEngine(url, session, EngineOptions(limits=EAGER))


async def test_probe_tells_all_that_the_server_tells(session: aiohttp.ClientSession) -> None:
    async with serving(FakeLlamaCpp().app()) as url:
        assert await llamacpp(url, session).probe() == EngineInfo(
            engine="llamacpp",
            models=("tiny", "small"),
            version="b6981-fd7a8fb",
            kv_tokens=16384,
            max_model_tokens=16384,
            max_running=4,
            capabilities=Capabilities(token_prompts=True),
        )


@pytest.mark.parametrize("props", [None, {}, {"default_generation_settings": None, "total_slots": 0}, []])
async def test_probe_of_a_server_that_tells_less(session: aiohttp.ClientSession, props: Any) -> None:
    """/props asks for the server's key, or speaks for a router that has loaded no model."""
    fake = FakeLlamaCpp()
    fake.props = props
    async with serving(fake.app()) as url:
        info = await llamacpp(url, session).probe()
        assert (info.version, info.max_running, info.kv_tokens, info.max_model_tokens) == (None, None, 16384, 16384)
        fake.card = {"id": "tiny", "meta": None, "aliases": "tiny"}
        info = await llamacpp(url, session).probe()
        assert (info.models, info.kv_tokens, info.max_model_tokens) == (("tiny",), None, None)


@pytest.mark.parametrize(
    ("metrics", "slots", "expected"),
    [
        (METRICS, FakeLlamaCpp().slots, LoadReport(running=2, waiting=5, kv_used_ratio=3096 / 16384)),
        (None, FakeLlamaCpp().slots, LoadReport(running=1, waiting=0, kv_used_ratio=3096 / 16384)),
        (METRICS, None, LoadReport(running=2, waiting=5, kv_used_ratio=0.0)),
        (None, [slot(n, 9000, busy=True) for n in range(2)], LoadReport(running=2, waiting=0, kv_used_ratio=1.0)),
        (None, [slot(0), "?", {}], LoadReport(running=0, waiting=0, kv_used_ratio=0.0)),
        (
            "llamacpp:kv_cache_usage_ratio 0.25\nllamacpp:requests_processing 1\nllamacpp:requests_deferred 0\n",
            None,
            LoadReport(running=1, waiting=0, kv_used_ratio=0.25),
        ),
        ("llamacpp:requests_processing NaN\n", None, None),
        (None, None, None),
    ],
)
async def test_load(
    session: aiohttp.ClientSession, metrics: str | None, slots: Any, expected: LoadReport | None
) -> None:
    fake = FakeLlamaCpp()
    fake.metrics, fake.slots = metrics, slots
    async with serving(fake.app()) as url:
        assert await llamacpp(url, session).load() == expected


@pytest.mark.parametrize(
    ("owner", "has_props", "expected"),
    [("llamacpp", False, LlamaCppEngine), ("a proxy", True, LlamaCppEngine), ("a proxy", False, OpenAIEngine)],
)
async def test_it_is_recognised_by_its_signature_or_its_slots(
    session: aiohttp.ClientSession, owner: str, has_props: bool, expected: type
) -> None:
    fake = FakeLlamaCpp()
    fake.card["owned_by"] = owner
    fake.props = fake.props if has_props else None
    async with serving(fake.app()) as url:
        assert type(await connect(url, session)) is expected


async def test_load_is_observed(session: aiohttp.ClientSession) -> None:
    fake = FakeLlamaCpp()
    async with serving(fake.app()) as url, aclosing(llamacpp(url, session).observe()) as observations:
        assert await anext(observations) == LoadReport(running=2, waiting=5, kv_used_ratio=3096 / 16384)
        fake.metrics = METRICS.replace("deferred 5", "deferred 0")
        while (seen := await anext(observations)).waiting:
            pass
        assert seen == LoadReport(running=2, waiting=0, kv_used_ratio=3096 / 16384)


async def test_the_slot_stays_the_servers_choice(session: aiohttp.ClientSession) -> None:
    """Neither `id_slot` nor `cache_prompt` is put into a body, and the client's own stay."""
    fake, seen = FakeLlamaCpp(), []
    app = fake.app()

    async def chat(request: Any) -> Any:
        seen.append(await request.read())
        return aiohttp.web.json_response({})

    app.router.add_post("/v1/chat/completions", chat)
    async with serving(app) as url:
        for body in (b'{"messages": []}', b'{"id_slot": 2, "messages": []}'):
            request = EngineRequest(
                request_id="r", path="/v1/chat/completions", body=body, headers={}, urgency_s=-1.0, session_id="s"
            )
            async with llamacpp(url, session).generate(request) as upstream:
                assert upstream.status == 200
            assert seen[-1] == body

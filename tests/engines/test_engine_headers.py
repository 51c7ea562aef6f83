"""Which headers an adapter lets across to its engine."""

from collections.abc import Callable

import aiohttp
import pytest
from aiohttp import web
from engine_fakes import serving

from amf.engines.engine import Engine, EngineRequest
from amf.engines.headers import MAX_IDENTIFIER_CHARS, identifier, response_headers
from amf.engines.llamacpp import LlamaCppEngine
from amf.engines.openai import OpenAIEngine
from amf.engines.options import EngineOptions
from amf.engines.tgi import TgiEngine
from amf.engines.vllm import VllmEngine

Connect = Callable[..., Engine]


@pytest.fixture(params=[VllmEngine, OpenAIEngine, LlamaCppEngine, TgiEngine])
def connect(request: pytest.FixtureRequest, session: aiohttp.ClientSession) -> Connect:
    return lambda url, **options: request.param(url, session, EngineOptions(**options))


async def seen_headers(engine: Callable[[str], Engine], sent: dict[str, str]) -> dict[str, str]:
    seen: dict[str, str] = {}

    async def handler(request: web.Request) -> web.Response:
        seen.update((name.lower(), value) for name, value in request.headers.items())
        return web.Response()

    app = web.Application()
    app.router.add_post("/v1/chat/completions", handler)
    async with serving(app) as url:
        request = EngineRequest(
            request_id="r1", path="/v1/chat/completions", body=b"{}", headers=sent, session_id="s 1", urgency_s=1.5
        )
        async with engine(url).generate(request) as upstream:
            assert upstream.status == 200
    return seen


async def test_only_the_clients_own_headers_cross(connect: Connect) -> None:
    sent = {
        "Host": "gateway",
        "Content-Length": "999",
        "Connection": "keep-alive, X-Hop",
        "X-Hop": "1",
        "TE": "trailers",
        "Transfer-Encoding": "chunked",
        "Cookie": "login=1",
        "X-Request-Id": "theirs",
        "X-Session-ID": "theirs",
        "x-vllm-priority": "-9",
        "X-data-parallel-rank": "3",
        "X-Dynamo-Hint": "1",
        "x-gateway-inference-objective": "1",
        "x-llm-d-thing": "1",
        "x-amf-run-id": "r",
        "Authorization": "Bearer theirs",
        "traceparent": "00-1-2-01",
        "User-Agent": "openai-python",
    }
    seen = await seen_headers(connect, sent)
    assert seen.pop("host").startswith("127.0.0.1")
    seen.pop("x-session-id", None)
    assert seen == {
        "content-length": "2",
        "accept-encoding": "identity",
        "content-type": "application/json",
        "x-request-id": "r1",
        "authorization": "Bearer theirs",
        "traceparent": "00-1-2-01",
        "user-agent": "openai-python",
    }


async def test_a_configured_key_takes_the_place_of_the_clients(connect: Connect) -> None:
    sent = {"authorization": "Bearer theirs", "x-api-key": "theirs", "content-type": "application/json; charset=utf-8"}
    seen = await seen_headers(lambda url: connect(url, api_key="ours\n"), sent)
    assert seen["authorization"] == "Bearer ours"
    assert "x-api-key" not in seen
    assert seen["content-type"] == "application/json; charset=utf-8"


def test_the_engines_own_hop_stays_behind() -> None:
    received = {
        "Connection": "close, X-Hop",
        "X-Hop": "1",
        "Keep-Alive": "timeout=5",
        "Content-Length": "2",
        "X-A": "b",
    }
    assert dict(response_headers(received)) == {"Content-Length": "2", "X-A": "b"}


def test_identifiers_are_safe_and_short() -> None:
    assert identifier("run-1/a b|c:d") == "run-1/a b|c:d"
    assert identifier(" a\r\nb\0%\ud800 ") == "a%0D%0Ab%00%25?"
    assert len(identifier("é" * 9999)) == MAX_IDENTIFIER_CHARS

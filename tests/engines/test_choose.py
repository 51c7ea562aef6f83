"""From a URL to an adapter: each question is put to the engine once, however many adapters want to know."""

from collections import Counter

import aiohttp
import pytest
from aiohttp import web
from engine_fakes import serving

from amf.engines.choose import ADAPTERS, connect
from amf.engines.openai import OpenAIEngine
from amf.engines.options import EngineOptions
from amf.engines.release import release


async def test_auto_asks_each_question_once(session: aiohttp.ClientSession) -> None:
    """A service that is none of the engines: all adapters look at it."""
    asked: Counter[str] = Counter()

    async def answer(request: web.Request) -> web.Response:
        asked[request.path] += 1
        if request.path == "/v1/models":
            return web.json_response({"data": [{"id": "m", "owned_by": "somebody"}]})
        return web.Response(status=404)

    app = web.Application()
    app.router.add_route("*", "/{any:.*}", answer)
    async with serving(app) as url:
        assert type(await connect(url, session)) is OpenAIEngine
        assert asked["/v1/models"] == asked["/metrics"] == asked["/props"] == asked["/info"] == 1
        assert max(asked.values()) == 1


async def test_a_kind_that_is_set_is_taken_at_its_word(session: aiohttp.ClientSession, unused_tcp_port: int) -> None:
    for adapter in ADAPTERS:
        engine = await connect(f"http://127.0.0.1:{unused_tcp_port}", session, EngineOptions(kind=adapter.kind))
        assert type(engine) is adapter


@pytest.mark.parametrize(
    ("version", "numbers"),
    [
        ("0.32.0", (0, 32, 0)),
        ("0.5.23.post1+cpu", (0, 5, 23)),
        ("0.33rc1", (0, 33)),
        ("7", (7,)),
        ("v1.2", ()),
        ("", ()),
        (None, ()),
    ],
)
def test_releases(version: str | None, numbers: tuple[int, ...]) -> None:
    assert release(version) == numbers

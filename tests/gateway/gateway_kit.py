"""For the gateway's tests: a small OpenAI-compatible engine with faults to order, a gateway before it, and a client."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
from aiohttp import web

from amf.config import LimitsConfig, ServeConfig, ServerConfig, WorkerConfig
from amf.core.config import FabricConfig
from amf.core.decisions import Decision
from amf.core.events import Event
from amf.core.fabric import Fabric
from amf.core.policy.bundles import policies_named
from amf.gateway.service import Gateway, running_gateway


@dataclass
class FakeEngine:
    """`fault` is one of: "", 500, 400, garbage, half (closes in mid-answer), cut (ends before [DONE]), late (breaks after
    [DONE]), stall, refuse (a head and nothing more), hold (before the head), pause (in mid-stream)."""

    model: str = "tiny"
    fault: str = ""
    healthy: bool = True
    url: str = ""
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    running: int = 0
    cancelled: int = 0
    release: asyncio.Event = field(default_factory=asyncio.Event)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    prompt_tokens: int = 40

    def sse(self) -> list[bytes]:
        chunk = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": self.model}
        texts = ("Hel", "lo", " wörld  ")
        lines = [
            json.dumps({**chunk, "choices": [{"index": 0, "delta": {"content": t}}]}, ensure_ascii=False) for t in texts
        ]
        lines.append(json.dumps({**chunk, "choices": [], "usage": self.usage()}))
        lines.append("[DONE]")
        return [f"data: {line}\n\n".encode() for line in lines]

    def usage(self) -> dict:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": 3,
            "total_tokens": self.prompt_tokens + 3,
            "prompt_tokens_details": {"cached_tokens": 16},
        }

    def answer(self) -> bytes:
        message = {"role": "assistant", "content": "Hello  wörld"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        body = {"id": "c1", "object": "chat.completion", "created": 1, "model": self.model}
        return json.dumps({**body, "choices": [choice], "usage": self.usage()}, ensure_ascii=False).encode()

    async def generate(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        self.bodies.append(raw)
        self.headers.append({k.lower(): v for k, v in request.headers.items()})
        self.running += 1
        self.arrived.set()
        try:
            if self.fault == "hold":
                await self.release.wait()
            return await self._answer(request, json.loads(raw))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def _answer(self, request: web.Request, body: dict) -> web.StreamResponse:
        if self.fault in ("500", "400"):
            return web.json_response({"error": {"message": "no", "type": "x", "code": None}}, status=int(self.fault))
        if not body.get("stream"):
            if self.fault == "stall":
                await asyncio.sleep(3600)
            text = b"<html>oops</html>" if self.fault == "garbage" else self.answer()
            if self.fault != "half":
                return web.Response(body=text, content_type="application/json")
            response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "9999"})
            await response.prepare(request)
            await response.write(text[:20])
            assert request.transport is not None
            request.transport.abort()
            return response
        kind = "text/html" if self.fault == "garbage" else "text/event-stream"
        response = web.StreamResponse(headers={"Content-Type": kind, "X-Engine": "fake"})
        await response.prepare(request)
        if self.fault == "refuse":
            return response
        for number, event in enumerate(self.sse()):
            if number == 2 and self.fault in ("half", "cut", "stall", "pause"):
                if self.fault == "half":
                    assert request.transport is not None
                    request.transport.abort()
                elif self.fault == "stall":
                    await asyncio.sleep(3600)
                elif self.fault == "pause":
                    await self.release.wait()
                if self.fault != "pause":
                    return response
            await response.write(event)
        if self.fault == "late":
            assert request.transport is not None
            request.transport.abort()
        return response

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": self.model, "object": "model"}]})

    async def health(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if self.healthy else 503)

    async def tokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        text = "".join(message["content"] for message in body["messages"])
        return web.json_response({"tokens": [ord(c) for c in text], "count": len(text), "max_model_len": 4096})


@asynccontextmanager
async def fake_engine(engine: FakeEngine | None = None, port: int = 0) -> AsyncIterator[FakeEngine]:
    engine = engine or FakeEngine()
    app = web.Application(client_max_size=128 * 1024 * 1024)
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank"):
        app.router.add_post(path, engine.generate)
    app.router.add_get("/v1/models", engine.models)
    app.router.add_get("/health", engine.health)
    app.router.add_post("/tokenize", engine.tokenize)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    engine.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield engine
    finally:
        await runner.cleanup()


FAST = LimitsConfig(wait_s=20.0, health_interval_s=0.05, retry_min_s=0.02, retry_max_s=0.05)
IMPATIENT = replace(FAST, stall_timeout_s=0.3, head_timeout_s=0.3)  # only for engines that stall


def config(*engines: FakeEngine, policy: str = "least-loaded", limits: LimitsConfig = FAST, **more: Any) -> ServeConfig:
    """A gateway in front of these engines. Workers are named w0, w1, ..."""
    workers = tuple(WorkerConfig(url=engine.url, name=f"w{i}") for i, engine in enumerate(engines))
    server = more.pop("server", ServerConfig(port=0, shutdown_grace_s=0.5))
    return ServeConfig(policy=policy, server=server, workers=workers, limits=limits, **more)


@asynccontextmanager
async def gateway_of(*engines: FakeEngine, fabric: Any = None, **more: Any) -> AsyncIterator[tuple[Gateway, "Client"]]:
    async with running_gateway(config(*engines, **more), fabric) as gateway, aiohttp.ClientSession() as session:
        yield gateway, Client(gateway.url, session)


class WatchedFabric:
    """The real fabric. Keeps the events it is given, and fails on those of the kind `fails_on`."""

    def __init__(self, policy: str = "fabric", fails_on: type[Event] | None = None) -> None:
        self.inner = Fabric(FabricConfig(), policies_named(policy))
        self.events: list[Event] = []
        self.fails_on = fails_on

    def handle(self, event: Event) -> list[Decision]:
        self.events.append(event)
        if self.fails_on is not None and isinstance(event, self.fails_on):
            raise ZeroDivisionError("a fault of the fabric")
        return self.inner.handle(event)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return str(self.json["error"]["code"])


@dataclass
class Client:
    url: str
    session: aiohttp.ClientSession

    async def request(self, method: str, path: str, **more: Any) -> Answer:
        async with self.session.request(method, self.url + path, **more) as response:
            return Answer(response.status, response.headers, await response.read())

    async def chat(self, *contents: str, headers: dict[str, str] | None = None, **fields: Any) -> Answer:
        """One chat call; `contents` alternate between user and assistant after a system message."""
        body = {"model": "tiny", "messages": chat_messages(*contents), **fields}
        return await self.request("POST", "/v1/chat/completions", json=body, headers=headers or {})


def chat_messages(*contents: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents or ("hi",))]
    return [{"role": "system", "content": "You help."}, *turns]


async def until(condition: Callable[[], bool], limit_s: float = 5.0) -> None:
    """Wait for something another task will bring about. Raises TimeoutError."""
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.005)

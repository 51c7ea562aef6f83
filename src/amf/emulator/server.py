"""The emulator as an HTTP server: the application, in-process for tests, and until a signal for the command line."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from amf.emulator import generate, retrieval, routes
from amf.emulator.config import EmulatorConfig
from amf.emulator.emulator import Emulator
from amf.emulator.errors import ApiError
from amf.emulator.routes import EMULATOR

_MAX_BODY_BYTES = 256 * 1024 * 1024
_SHUTDOWN_S = 0.25
_BACKLOG = 4096
_DIED = 137  # the exit status of a process that was killed


def create_app(config: EmulatorConfig) -> web.Application:
    """Serve it with `handler_cancellation=True`, or clients that leave are not noticed. Raises what the config raises."""
    app = web.Application(client_max_size=_MAX_BODY_BYTES, middlewares=[_errors])
    app[EMULATOR] = Emulator(config)
    app.cleanup_ctx.append(_lifetime)
    app.router.add_get("/health", routes.health)
    app.router.add_get("/version", routes.version)
    app.router.add_get("/metrics", routes.metrics)
    app.router.add_get("/v1/models", routes.models)
    app.router.add_get("/kv_event_sources", routes.kv_event_sources)
    app.router.add_post("/reset_prefix_cache", routes.reset_prefix_cache)
    app.router.add_post("/tokenize", routes.tokenize)
    app.router.add_post("/detokenize", routes.detokenize)
    app.router.add_post("/v1/chat/completions", generate.chat_completions)
    app.router.add_post("/v1/completions", generate.completions)
    app.router.add_post("/v1/embeddings", retrieval.embeddings)
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        app.router.add_post(path, retrieval.rerank)
    return app


@asynccontextmanager
async def running(config: EmulatorConfig) -> AsyncIterator[Emulator]:
    """Serve on the running event loop. The emulator's `url` says where; `die()` breaks all its connections at once and
    stops listening, as the end of a process would. Raises OSError or zmq.ZMQError if a port is taken."""
    app = create_app(config)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=_SHUTDOWN_S)
    await runner.setup()
    try:
        emulator = app[EMULATOR]
        assert runner.server is not None
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(runner.server, config.host, config.port, backlog=_BACKLOG)
        emulator.url = f"http://{config.host}:{listener.sockets[0].getsockname()[1]}"
        emulator.die = lambda: _break_off(listener, runner.server)
        try:
            yield emulator
        finally:
            listener.close()
    finally:
        await runner.cleanup()


async def serve(config: EmulatorConfig, ready: Callable[[Emulator], None]) -> None:
    """Serve until SIGINT or SIGTERM. `ready` is called once requests are accepted. A fatal fault ends the process."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with running(config) as emulator:
        emulator.die = lambda: os._exit(_DIED)
        ready(emulator)
        await stop.wait()


async def _lifetime(app: web.Application) -> AsyncIterator[None]:
    await app[EMULATOR].start()
    yield
    await app[EMULATOR].close()


def _break_off(listener: asyncio.Server, server: web.Server | None) -> None:
    listener.close()
    for connection in server.connections if server else ():
        if connection.transport is not None:
            connection.transport.abort()


@web.middleware
async def _errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except ApiError as error:
        return web.json_response(error.body(), status=error.status)
    except web.HTTPException as error:
        return web.json_response({"detail": error.reason}, status=error.status)

"""The HTTP surface: routes, authentication, and every error in the OpenAI form."""

import asyncio
import logging
from dataclasses import dataclass

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from amf.core.types import CallKind
from amf.gateway.auth import Keys
from amf.gateway.clock import Clock
from amf.gateway.control import Control
from amf.gateway.fleet import Fleet
from amf.gateway.forward import Forwarder
from amf.gateway.intake import Inbound
from amf.gateway.metrics import CONTENT_TYPE, Metrics
from amf.gateway.pools import Pools
from amf.gateway.problem import Problem
from amf.gateway.promises import Promises

log = logging.getLogger("amf.app")

_CALL_ROUTES = {
    "/v1/chat/completions": CallKind.GENERATE,
    "/v1/completions": CallKind.GENERATE,
    "/v1/embeddings": CallKind.EMBED,
    "/v1/rerank": CallKind.RERANK,
    "/rerank": CallKind.RERANK,
    "/v2/rerank": CallKind.RERANK,
}
_OPEN_PATHS = frozenset({"/health"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
    """What the routes need. `app()` builds the application around it."""

    forwarder: Forwarder
    control: Control
    pools: Pools
    fleet: Fleet
    metrics: Metrics
    promises: Promises
    clock: Clock
    keys: Keys

    def app(self, max_body_bytes: int) -> web.Application:
        app = web.Application(middlewares=[self._guard(max_body_bytes)], client_max_size=max_body_bytes)
        app.router.add_routes(
            [
                *(web.post(path, self._call(kind)) for path, kind in _CALL_ROUTES.items()),
                web.get("/v1/models", self._models),
                web.get("/health", self._health),
                web.get("/ready", self._ready),
                web.get("/metrics", self._render_metrics),
                *self.control.routes(),
            ]
        )
        return app

    def _call(self, kind: CallKind) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            caller = self.keys.caller(request.headers)
            inbound = Inbound(
                path=request.path,
                kind=kind,
                headers=request.headers,
                tenant=caller.tenant,
                trusted=caller.trusted,
                arrived_s=self.clock.now_s(),
            )
            return await self.forwarder.serve(request, inbound)

        return handle

    async def _models(self, request: web.Request) -> web.Response:
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "amf"} for name in self.pools.models()]
        return web.json_response({"object": "list", "data": data})

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _ready(self, request: web.Request) -> web.Response:
        up = self.fleet.up()
        return web.json_response({"ready": up > 0, "workers_up": up}, status=200 if up else 503)

    async def _render_metrics(self, request: web.Request) -> web.Response:
        self.promises.sweep()
        return web.Response(body=self.metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    def _guard(self, max_body_bytes: int) -> Middleware:
        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            status = 499
            try:
                if request.path not in _OPEN_PATHS:
                    self.keys.caller(request.headers)
                if request.content_length is not None and request.content_length > max_body_bytes:
                    raise _too_large(max_body_bytes)
                response = await handler(request)
                status = response.status
            except asyncio.CancelledError:
                self.metrics.disconnects.inc()
                raise
            except Exception as error:  # the border: nothing leaves it but an answer
                problem = _problem_of(error, request, max_body_bytes)
                response = problem.response()
                status = response.status
            finally:
                self.metrics.request(_route(request), status)
            return response

        return guard


def _problem_of(error: Exception, request: web.Request, max_body_bytes: int) -> Problem:
    match error:
        case Problem():
            return error
        case web.HTTPRequestEntityTooLarge():
            return _too_large(max_body_bytes)
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            return Problem(405, "method_not_allowed", f"{request.path} takes {allowed}, not {request.method}.")
        case web.HTTPNotFound():
            return Problem(404, "unknown_path", f"There is no {request.path} here; see docs/wire.md for what there is.")
        case web.HTTPException():
            return Problem(error.status, "http_error", error.reason)
        case web.RequestPayloadError() | msgspec.MsgspecError():
            return Problem(400, "invalid_body", "The body could not be read as it was announced.")
    log.error("a request failed inside the gateway", exc_info=error, extra={"path": request.path})
    return Problem(500, "internal_error", "The gateway failed on this request.", "internal_error", retry=True)


def _too_large(max_body_bytes: int) -> Problem:
    message = f"The body is larger than {max_body_bytes} bytes: send less, or raise [server] max_body_bytes."
    return Problem(413, "body_too_large", message, retry=False)


def _route(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unknown"

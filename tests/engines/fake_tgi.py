"""TGI as far as its adapter sees it: the shape of its documented endpoints and of 3.3's router. It was never held against a
running TGI, which needs a GPU."""

from typing import Any

from aiohttp import web

METRICS = """\
# TYPE tgi_batch_max_total_tokens gauge
tgi_batch_max_total_tokens 133120
# TYPE tgi_batch_current_size gauge
tgi_batch_current_size 3
# TYPE tgi_batch_current_max_tokens gauge
tgi_batch_current_max_tokens 33280
# TYPE tgi_queue_size gauge
tgi_queue_size 2
# TYPE tgi_batch_next_size histogram
tgi_batch_next_size_bucket{le="1"} 9
"""
MODEL = "org/tiny-instruct"


class FakeTgi:
    """The control endpoints, with answers that a test may change while it runs. None: not in that release."""

    def __init__(self) -> None:
        self.info: dict[str, Any] | None = {
            "model_id": MODEL,
            "model_sha": "e985a63cdc139290c5f700ff1929f0b5942cced2",
            "model_pipeline_tag": "text-generation",
            "max_concurrent_requests": 128,
            "max_best_of": 2,
            "max_stop_sequences": 4,
            "max_input_tokens": 16383,
            "max_total_tokens": 16384,
            "validation_workers": 2,
            "max_client_batch_size": 4,
            "router": "text-generation-router",
            "version": "3.3.6-dev0",
            "sha": None,
            "docker_label": None,
        }
        self.models: list[dict[str, Any]] | None = [{"id": MODEL, "object": "model", "created": 0, "owned_by": MODEL}]
        self.metrics = METRICS
        self.chat_status = 200

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/info", lambda _: _told(self.info))
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/health", lambda _: _told(""))
        app.router.add_post("/v1/chat/completions", self._chat)
        return app

    async def _models(self, _: web.Request) -> web.Response:
        return await _told(None if self.models is None else {"object": "list", "data": self.models})

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(text=self.metrics)

    async def _chat(self, _: web.Request) -> web.Response:
        error = {"error": "Request failed during generation", "error_type": "generation"}
        return web.json_response(error, status=self.chat_status)


async def _told(answer: Any) -> web.Response:
    return web.Response(status=404) if answer is None else web.json_response(answer)

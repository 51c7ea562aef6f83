"""llama.cpp's server as far as its adapter sees it. The answers have the shape that xllamacpp 2026.10.11549 gave, cut to what
matters; `tests/live/test_live_llamacpp.py` asks the real one."""

from typing import Any

from aiohttp import web

METRICS = """\
# HELP llamacpp:prompt_tokens_cached_total Number of prompt tokens reused from the cache
# TYPE llamacpp:prompt_tokens_cached_total counter
llamacpp:prompt_tokens_cached_total 412
# HELP llamacpp:requests_processing Number of requests processing
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 2
# HELP llamacpp:requests_deferred Number of requests deferred
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred 5
# HELP llamacpp:n_busy_slots_per_decode Average number of busy slots per llama_decode() call
# TYPE llamacpp:n_busy_slots_per_decode gauge
llamacpp:n_busy_slots_per_decode 1.5
"""


def slot(number: int, tokens: int = 0, *, busy: bool = False) -> dict[str, Any]:
    """One entry of /slots. A slot that never served anything tells no tokens."""
    entry = {"id": number, "n_ctx": 16384, "speculative": False, "is_processing": busy}
    if tokens:
        entry |= {"id_task": 7, "n_prompt_tokens": tokens, "n_prompt_tokens_processed": tokens, "params": {"seed": 1}}
    return entry


class FakeLlamaCpp:
    """The control endpoints, with answers that a test may change while it runs. None: that endpoint is closed by a flag."""

    def __init__(self) -> None:
        self.card: dict[str, Any] = {
            "id": "tiny",
            "aliases": ["tiny", "small"],
            "object": "model",
            "owned_by": "llamacpp",
            "meta": {"vocab_type": 2, "n_vocab": 4096, "n_ctx": 16384, "n_ctx_train": 16384, "size": 10494976},
        }
        self.props: dict[str, Any] | None = {
            "default_generation_settings": {"params": {"temperature": 0.8, "n_predict": -1}, "n_ctx": 16384},
            "total_slots": 4,
            "model_alias": "tiny",
            "build_info": "b6981-fd7a8fb",
            "chat_template": "{{ messages }}",
        }
        self.slots: list[dict[str, Any]] | None = [slot(0), slot(1, 1000), slot(2, 3096, busy=True), slot(3)]
        self.metrics: str | None = METRICS

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/props", lambda _: _told(self.props))
        app.router.add_get("/slots", lambda _: _told(self.slots))
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/health", lambda _: _told({"status": "ok"}))
        return app

    async def _models(self, _: web.Request) -> web.Response:
        listed = {"name": "tiny", "model": "tiny", "type": "model"}  # the same again as Ollama lists it
        return web.json_response({"models": [listed], "object": "list", "data": [self.card]})

    async def _metrics(self, _: web.Request) -> web.Response:
        return await _told(None) if self.metrics is None else web.Response(text=self.metrics)


async def _told(answer: Any) -> web.Response:
    if answer is None:
        error = {"code": 501, "message": "This server does not support this endpoint", "type": "not_supported_error"}
        return web.json_response({"error": error}, status=501)
    return web.json_response(answer)

"""A fake trtllm-serve, from the documented shapes of its answers. It has never been held against the real server."""

from collections import deque
from collections.abc import Sequence
from typing import Any

from aiohttp import web


def block(block_hash: int, tokens: Sequence[int], level: int = 0, **more: Any) -> dict[str, Any]:
    unique = [{"type": "unique_token", "token_id": token, "token_extra_id": 0} for token in tokens]
    return {
        "type": "stored_block",
        "block_hash": block_hash,
        "tokens": unique,
        "cache_level": level,
        "priority": 35,
        **more,
    }


def created(*blocks_per_level: int) -> dict[str, Any]:
    return {"type": "created", "num_blocks_per_cache_level": list(blocks_per_level)}


def stored(*blocks: dict[str, Any], parent: int | None = None) -> dict[str, Any]:
    return {"type": "stored", "parent_hash": parent, "blocks": list(blocks)}


def removed(*hashes: int) -> dict[str, Any]:
    return {"type": "removed", "block_hashes": list(hashes)}


def updated(block_hash: int, old: int, new: int) -> dict[str, Any]:
    change = {"type": "event_diff", "new_value": new, "old_value": old}
    return {"type": "updated", "block_hash": block_hash, "cache_level": change, "priority": None}


def iteration(active: int, queued: int = 0, used: int = 0, blocks: int = 1000) -> dict[str, Any]:
    cache = {"usedNumBlocks": used, "maxNumBlocks": blocks, "freeNumBlocks": blocks - used, "tokensPerBlock": 32}
    return {"iter": 7, "numActiveRequests": active, "numQueuedRequests": queued, "kvCacheStats": cache}


class FakeTrtllm:
    """The control endpoints, with answers that a test may change while it runs. Events and iterations are handed out once.

    `raw`: sent in place of the answer of a path, as (status, body). `buffer_size`: events that wait at most; of more the
    oldest are lost.
    """

    def __init__(self, buffer_size: int = 16_384) -> None:
        self.health = 200
        self.owned_by = "tensorrt_llm"
        self.iterations: list[Any] = []
        self.raw: dict[str, tuple[int, bytes]] = {
            "/prometheus/metrics": (404, b""),
            "/openapi.json": (404, b""),
        }
        self.asked: list[str] = []
        self._events: deque[dict[str, Any]] = deque(maxlen=buffer_size)
        self._next: dict[int | None, int] = {}

    def emit(self, *data: dict[str, Any], window: int | None = None, rank: int | None = None) -> None:
        for each in data:
            number = self._next.get(rank, 0)
            self._next[rank] = number + 1
            event: dict[str, Any] = {"event_id": number, "data": each}
            if window is not None:
                event["window_size"] = window
            if rank is not None:
                event["attention_dp_rank"] = rank
            self._events.append(event)

    def drain(self) -> list[dict[str, Any]]:
        events = list(self._events)
        self._events.clear()
        return events

    def restart(self) -> None:
        self._events.clear()
        self._next.clear()

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        app.router.add_get("/version", self._version)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/prometheus/metrics", self._nothing)
        app.router.add_get("/openapi.json", self._nothing)
        app.router.add_post("/kv_cache_events", self._kv_cache_events)
        return app

    async def _models(self, _: web.Request) -> web.Response:
        card = {"id": "tiny", "object": "model", "owned_by": self.owned_by}
        return web.json_response({"object": "list", "data": [card]})

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=self.health)

    async def _version(self, request: web.Request) -> web.Response:
        return self._replaced(request) or web.json_response({"version": "1.4.0rc1"})

    async def _metrics(self, request: web.Request) -> web.Response:
        if answer := self._replaced(request):
            return answer
        iterations, self.iterations = self.iterations, []
        return web.json_response(iterations)

    async def _kv_cache_events(self, request: web.Request) -> web.Response:
        return self._replaced(request) or web.json_response(self.drain())

    async def _nothing(self, request: web.Request) -> web.Response:
        return self._replaced(request) or web.Response(status=404)

    def _replaced(self, request: web.Request) -> web.Response | None:
        self.asked.append(request.path)
        if request.path not in self.raw:
            return None
        status, body = self.raw[request.path]
        return web.Response(status=status, body=body)

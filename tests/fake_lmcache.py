"""LMCache's controller as far as its client sees it: the routes and bodies of its documentation, and what its source (0.5) does
with a lookup: each chunk is credited to the first registered instance that has it, and the walk ends at one that none has. It
was never held against a running controller, which needs engines with CUDA to report to it."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

CHUNK_TOKENS = 256
HOST_MEMORY, DISK = "LocalCPUBackend", "LocalDiskBackend"
FAULTS = ("404", "500", "garbage", "wrong", "huge", "cut", "slow")
_WRONG = (
    [],
    {},
    {"layout_info": [], "num_tokens": "many", "worker_infos": {}, "error_codes": []},
    {"layout_info": {"a": ["LocalCPUBackend", -1]}, "num_tokens": -1, "worker_infos": [{}], "error_codes": {"x": 0}},
    {"layout_info": {"a": "LocalCPUBackend"}, "num_tokens": None, "worker_infos": [7], "error_codes": {"0": "well"}},
)


class FakeController:
    """`fault`: "" or one of FAULTS; "wrong" answers JSON of another shape, the next one each time."""

    def __init__(self, *instances: str) -> None:
        self.url = ""
        self.fault = ""
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.go_on = asyncio.Event()  # for "slow"
        self.pinned: list[tuple[str, str, int]] = []
        self._held: dict[str, dict[str, set[int]]] = {name: {} for name in instances}

    def hold(self, instance: str, tokens: Sequence[int], location: str = HOST_MEMORY) -> None:
        """As if the instance had stored all whole chunks of the prompt."""
        self._held[instance].setdefault(location, set()).update(_chunks(tokens))

    def drop(self, instance: str, tokens: Sequence[int], keep_tokens: int = 0) -> None:
        """As if it had evicted them, but for the first ones."""
        for chunks in self._held[instance].values():
            chunks.difference_update(_chunks(tokens)[keep_tokens // CHUNK_TOKENS :])

    def lookups(self) -> int:
        return sum(path == "/lookup" for path, _ in self.asked)

    def lookup(self, body: dict[str, Any]) -> dict[str, Any]:
        layout: dict[str, tuple[str, int]] = {}
        for number, chunk in enumerate(_chunks(body["tokens"]), start=1):
            holders = ((i, at) for i, places in self._held.items() for at, chunks in places.items() if chunk in chunks)
            holder = next(holders, None)
            if holder is None:
                break
            layout[holder[0]] = (holder[1], number * CHUNK_TOKENS)
        return {"event_id": "Lookup5d0f", "layout_info": layout}

    def pin(self, body: dict[str, Any]) -> dict[str, Any]:
        held = self._held[body["instance_id"]].get(body["location"], set())
        tokens = CHUNK_TOKENS * sum(chunk in held for chunk in _chunks(body["tokens"]))
        self.pinned.append((body["instance_id"], body["location"], tokens))
        return {"event_id": "Pin77a1", "num_tokens": tokens}

    def move(self, body: dict[str, Any]) -> dict[str, Any]:
        (source, here), (target, there) = body["old_position"], body["new_position"]
        held = self._held[source].get(here, set())
        moved = [chunk for chunk in _chunks(body["tokens"]) if chunk in held]
        self._held[target].setdefault(there, set()).update(moved)
        if not body.get("should_copy", False):
            held.difference_update(moved)
        return {"event_id": "Move0b6e", "num_tokens": CHUNK_TOKENS * len(moved)}

    def clear(self, body: dict[str, Any]) -> dict[str, Any]:
        gone = self._held[body["instance_id"]].pop(body["location"], set())
        return {"event_id": "Clear1c2d", "num_tokens": CHUNK_TOKENS * len(gone)}

    def health(self, body: dict[str, Any]) -> dict[str, Any]:
        self._held[body["instance_id"]]
        return {"event_id": "health47ce", "error_codes": {"0": 0, "1": 0}}

    def query_worker_info(self, body: dict[str, Any]) -> dict[str, Any]:
        wanted = body["instance_id"]
        infos = [
            {
                "instance_id": name,
                "worker_id": 0,
                "ip": "127.0.0.1",
                "port": 8001,
                "peer_init_url": "127.0.0.1:8200",
                "registration_time": 1764139000.25,
                "last_heartbeat_time": 1764139060.5,
            }
            for name in self._held
            if wanted in ("all", name)
        ]
        return {"event_id": "QueryWorkerInfo9e", "worker_infos": infos}

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        path = request.path
        self.asked.append((path, body))
        match self.fault:
            case "404":
                return web.json_response({"detail": "Not Found"}, status=404)
            case "500":
                return web.json_response({"detail": "Worker 0 not registered for instance a"}, status=500)
            case "garbage":
                return web.Response(body=b"\xff\x00 no JSON", content_type="application/json")
            case "wrong":
                return web.json_response(_WRONG[(len(self.asked) - 1) % len(_WRONG)])
            case "huge":
                return web.Response(body=b'{"event_id":"' + b"x" * (8 << 20) + b'"}', content_type="application/json")
            case "cut":
                return await _cut(request)
            case "slow":
                await self.go_on.wait()
        try:
            return web.json_response(getattr(self, path.removeprefix("/"))(body))
        except KeyError as unknown:
            return web.json_response({"detail": f"Worker 0 not registered for instance {unknown}"}, status=500)


@asynccontextmanager
async def fake_controller(*instances: str, port: int = 0) -> AsyncIterator[FakeController]:
    controller = FakeController(*instances)
    app = web.Application(client_max_size=64 << 20)
    for path in ("lookup", "pin", "move", "clear", "health", "query_worker_info"):
        app.router.add_post(f"/{path}", controller.answer)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        controller.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield controller
    finally:
        await runner.cleanup()


async def _cut(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "9999"})
    await response.prepare(request)
    await response.write(json.dumps({"event_id": "x"}).encode())
    assert request.transport is not None
    request.transport.abort()
    return response


def _chunks(tokens: Sequence[int]) -> list[int]:
    """A chained hash of every whole chunk."""
    hashes: list[int] = []
    for start in range(0, len(tokens) - CHUNK_TOKENS + 1, CHUNK_TOKENS):
        hashes.append(hash((hashes[-1] if hashes else 0, tuple(tokens[start : start + CHUNK_TOKENS]))))
    return hashes

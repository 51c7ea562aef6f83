"""Engines for the adapters' tests: one that serves well, one that sends whatever bytes a test wants, and a KV publisher."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import zmq
import zmq.asyncio
from aiohttp import web

END_OF_REPLAY = b"\xff" * 8

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(app: web.Application, port: int = 0) -> AsyncIterator[str]:
    """Runs an aiohttp application; gives its URL."""
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, shutdown_timeout=0.1)
    await site.start()
    server = runner.server
    try:
        yield f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
    finally:
        await runner.cleanup()
        for _ in range(5):  # a connection accepted while the server closed is made a few turns of the loop later
            await asyncio.sleep(0)
        for connection in server.connections:
            connection.force_close()


@asynccontextmanager
async def raw_server(script: Script) -> AsyncIterator[str]:
    """Runs `script` on each connection; gives the URL. At the end all connections are broken off."""
    open_connections: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await script(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_connections[writer] = asyncio.create_task(converse(reader, writer))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in open_connections:
            writer.transport.abort()
        await asyncio.gather(*open_connections.values())


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """The head and the body of the next request."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next((int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:")), 0)
    return head, await reader.readexactly(length)


def answering(*pieces: bytes) -> Script:
    """A script that reads the request, sends the pieces and closes."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()

    return script


def then_silent(*pieces: bytes) -> Script:
    """A script that reads the request, sends the pieces and keeps the connection open until the client closes it."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answering(*pieces)(reader, writer)
        await reader.read()

    return script


class KvPublisher:
    """A publisher as in vLLM: PUB, and a ROUTER that sends the buffered batches again. `withhold` loses live batches."""

    def __init__(self, encoding: str, port: int, replay_port: int, replay_queue: int) -> None:
        self.encoding = encoding
        self.buffer: dict[int, bytes] = {}
        self.number = 0
        self.replays: list[int] = []
        context = zmq.asyncio.Context.instance()
        self._publish, self._replay = context.socket(zmq.XPUB), context.socket(zmq.ROUTER)
        self._publish.setsockopt(zmq.XPUB_VERBOSE, 1)
        self._publish.set_hwm(0)
        self._replay.set_hwm(replay_queue)
        self.endpoint = _bind(self._publish, port)
        self.replay_endpoint = _bind(self._replay, replay_port)
        self._task = asyncio.create_task(self._serve_replays())

    async def subscribed(self) -> None:
        """Waits until a subscriber's subscription has arrived."""
        while (await self._publish.recv())[:1] != b"\x01":
            pass

    async def send(self, *events: dict[str, Any], withhold: bool = False) -> int:
        encoded = [event if self.encoding == "maps" else as_array(event) for event in events]
        return await self.send_raw(msgspec.msgpack.encode([self.number + 0.5, encoded, 0]), withhold=withhold)

    async def send_raw(self, payload: bytes, *, withhold: bool = False) -> int:
        number, self.number = self.number, self.number + 1
        self.buffer[number] = payload
        if not withhold:
            await self._publish.send_multipart([b"kv@w0@m", number.to_bytes(8, "big"), payload])
        return number

    async def _serve_replays(self) -> None:
        while True:
            client, empty, start = await self._replay.recv_multipart()
            first = int.from_bytes(start, "big")
            self.replays.append(first)
            for number, payload in sorted(self.buffer.items()):
                if number >= first:
                    await self._replay.send_multipart([client, empty, b"kv@w0@m", number.to_bytes(8, "big"), payload])
            await self._replay.send_multipart([client, empty, b"", END_OF_REPLAY, b""])

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._publish.close(linger=0)
        self._replay.close(linger=0)


@asynccontextmanager
async def publishing(
    encoding: str = "maps", port: int = 0, replay_port: int = 0, replay_queue: int = 1000
) -> AsyncIterator[KvPublisher]:
    publisher = KvPublisher(encoding, port, replay_port, replay_queue)
    try:
        yield publisher
    finally:
        await publisher.close()


def stored(
    hashes: Sequence[int | bytes], tokens: Sequence[int], parent: int | bytes | None = None, **more: Any
) -> dict:
    block_tokens = len(tokens) // len(hashes)
    return {
        "type": "BlockStored",
        "block_hashes": list(hashes),
        "parent_block_hash": parent,
        "token_ids": list(tokens),
        "block_size": block_tokens,
        "medium": "GPU",
        **more,
    }


def removed(*hashes: int | bytes, **more: Any) -> dict:
    return {"type": "BlockRemoved", "block_hashes": list(hashes), "medium": "GPU", **more}


def cleared() -> dict:
    return {"type": "AllBlocksCleared"}


_ARRAY_FIELDS = {
    "BlockStored": ["block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name"],
    "BlockRemoved": ["block_hashes", "medium"],
    "AllBlocksCleared": [],
}
_ARRAY_FIELDS["BlockStored"] += ["extra_keys", "group_idx"]


def as_array(event: dict[str, Any]) -> list[Any]:
    """The same event as releases up to 0.23 send it; an unknown one without fields."""
    return [event["type"], *(event.get(name) for name in _ARRAY_FIELDS.get(event["type"], []))]


def port_of(endpoint: str) -> int:
    return int(endpoint.rsplit(":", 1)[1])


def _bind(socket: zmq.asyncio.Socket, port: int) -> str:
    deadline_s = time.monotonic() + 10
    while True:  # ZMQ gives a port back some time after its socket was closed
        try:
            socket.bind(f"tcp://127.0.0.1:{port or '*'}")
            break
        except zmq.ZMQError:
            if not port or time.monotonic() > deadline_s:
                raise
            time.sleep(0.01)
    return socket.getsockopt(zmq.LAST_ENDPOINT).decode().rstrip("\0")


METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 3.0
vllm:num_requests_running{engine="1",model_name="tiny"} 1.0
vllm:num_requests_waiting{engine="0",model_name="tiny"} 2.0
vllm:num_requests_waiting{engine="1",model_name="tiny"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="capacity"} 7.0
vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.5
vllm:kv_cache_usage_perc{engine="1",model_name="tiny"} 0.25
vllm:cache_config_info{block_size="32",cache_dtype="auto",prefix_caching_hash_algo="sha256",\
kv_cache_size_tokens="524288",num_gpu_blocks="16384"} 1.0
"""


class FakeVllm:
    """The control endpoints of a vLLM server, with answers that a test may change while it runs."""

    def __init__(self, publisher: KvPublisher | None = None) -> None:
        self.metrics = METRICS
        self.health = 200
        self.sources: dict[str, Any] = {}
        self.owned_by = "vllm"
        if publisher is not None:
            self.tell(publisher)

    def tell(self, publisher: KvPublisher) -> None:
        self.sources = {
            "0": {
                "enable_kv_cache_events": True,
                "publisher": "zmq",
                "endpoint": f"tcp://*:{port_of(publisher.endpoint)}",
                "replay_endpoint": f"tcp://*:{port_of(publisher.replay_endpoint)}",
                "topic": "kv@w0@m",
            }
        }

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/version", lambda _: _json({"version": "0.32.0"}))
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/health", self._health)
        app.router.add_get("/kv_event_sources", self._sources)
        return app

    async def _models(self, _: web.Request) -> web.Response:
        card = {
            "id": "tiny",
            "object": "model",
            "owned_by": self.owned_by,
            "root": "hub/tiny-8b",
            "max_model_len": 16384,
        }
        return await _json({"object": "list", "data": [card]})

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(text=self.metrics)

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=self.health)

    async def _sources(self, _: web.Request) -> web.Response:
        return await _json(self.sources)


async def _json(value: Any) -> web.Response:
    return web.json_response(value)

"""KV events on the wire, as vLLM publishes them: ZMQ PUB for the live stream, ZMQ ROUTER for replay.

A published message has three frames: topic, sequence number (8 bytes, big-endian, from 0), msgpack of
`[unix seconds, [event, ...], data parallel rank]`; an event is a map with a `type`. A replay client (DEALER) sends
`["", start]` and receives `["", topic, number, payload]` for each batch still buffered, then `["", "", -1, ""]`.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from socket import gethostbyname
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from amf.emulator.faults import Dice

BUFFER_BATCHES = 10_000
HIGH_WATER_MESSAGES = 100_000
_END = (-1).to_bytes(8, "big", signed=True)


class KvEvent(msgspec.Struct, omit_defaults=True, tag_field="type", kw_only=True):
    """Fields without a default are always sent, also when null."""


class BlockStored(KvEvent, kw_only=True):
    block_hashes: Sequence[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: None
    medium: str | None
    lora_name: None
    extra_keys: list[list[str] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    session_id: str | None = None


class BlockRemoved(KvEvent, kw_only=True):
    block_hashes: Sequence[int]
    medium: str | None
    group_idx: int | None = None


class AllBlocksCleared(KvEvent):
    pass


class KvPublisher:
    """Owns both sockets. `host` is the address to bind; port 0 takes free ports, else replay is on `port` + 1."""

    def __init__(self, host: str, port: int, dice: Dice, topic: str = "") -> None:
        self._host, self._port = host, port
        self._dice = dice
        self._topic = topic.encode()
        self.next_sequence = 0
        self._buffer: deque[tuple[int, bytes]] = deque(maxlen=BUFFER_BATCHES)
        self._encoder = msgspec.msgpack.Encoder()

    def start(self) -> None:
        """Bind. Raises zmq.ZMQError if a port is taken. Needs a running event loop."""
        self._context = zmq.Context()
        self._publisher = self._context.socket(zmq.PUB)
        self._publisher.set_hwm(HIGH_WATER_MESSAGES)
        self._router = zmq.asyncio.Socket(self._context, zmq.ROUTER)
        self._router.set_hwm(0)  # a router drops what exceeds its mark, and a replay must be whole
        try:
            self.port = self._bind(self._publisher, self._port)
            self.replay_port = self._bind(self._router, self._port + 1 if self._port else 0)
        except zmq.ZMQError:
            self._close_sockets(linger_ms=0)
            raise
        self._replayer = asyncio.create_task(self._serve_replay())

    def publish(self, events: Sequence[KvEvent]) -> None:
        """Send one batch. Never waits; a subscriber beyond its high-water mark loses it."""
        sequence, self.next_sequence = self.next_sequence, self.next_sequence + 1
        if self._dice.loses_batch():
            return
        payload = self._encoder.encode([time.time(), events, 0])
        self._buffer.append((sequence, payload))
        self._publisher.send_multipart([self._topic, sequence.to_bytes(8, "big"), payload], copy=False)

    def describe(self) -> dict[str, Any]:
        """What `GET /kv_event_sources` says of this rank; `*` stands for the worker's own host."""
        return {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": f"tcp://*:{self.port}",
            "replay_endpoint": f"tcp://*:{self.replay_port}",
            "buffer_steps": BUFFER_BATCHES,
            "hwm": HIGH_WATER_MESSAGES,
            "max_queue_size": HIGH_WATER_MESSAGES,
            "topic": self._topic.decode(),
        }

    async def close(self) -> None:
        self._replayer.cancel()
        with suppress(asyncio.CancelledError):
            await self._replayer
        self._close_sockets(linger_ms=100)

    def _close_sockets(self, linger_ms: int) -> None:
        self._publisher.close(linger=linger_ms)
        self._router.close(linger=linger_ms)
        self._context.term()

    def _bind(self, socket: zmq.Socket[Any], port: int) -> int:
        host = "*" if self._host in ("0.0.0.0", "::", "") else gethostbyname(self._host)
        socket.bind(f"tcp://{host}:{port or '*'}")
        return int(socket.get_string(zmq.LAST_ENDPOINT).rsplit(":", 1)[1].rstrip("\0"))

    async def _serve_replay(self) -> None:
        while True:
            client, *rest = await self._router.recv_multipart()
            start = int.from_bytes(rest[-1], "big") if rest else 0
            for sequence, payload in list(self._buffer):
                if sequence >= start:
                    await self._router.send_multipart([client, b"", self._topic, sequence.to_bytes(8, "big"), payload])
            await self._router.send_multipart([client, b"", b"", _END, b""])

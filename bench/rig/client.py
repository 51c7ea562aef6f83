"""A load generator that costs little beside what it measures: prebuilt requests, one raw protocol a connection."""

import asyncio
from dataclasses import dataclass
from time import perf_counter
from typing import cast
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer. Times in seconds from the request's first byte; -1 milliseconds: the header was not there."""

    first_s: float  # first byte of the answer's body
    total_s: float
    overhead_ms: float
    queue_ms: float


class WrongAnswer(Exception):
    """Not the answer that was ordered: a number taken from it would mean nothing."""


class Connection(asyncio.Protocol):
    """One request at a time over one kept connection."""

    _done: asyncio.Future[Sample]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._loop = asyncio.get_running_loop()

    async def ask(self, request: bytes, events: int) -> Sample:
        """`events` is the number of stream events to expect, 0 for an answer in one piece. Raises WrongAnswer."""
        self._events = events
        self._head = b""
        self._body = bytearray()
        self._first_s = 0.0
        self._done = self._loop.create_future()
        self._started_s = perf_counter()
        self._transport.write(request)
        return await self._done

    def data_received(self, data: bytes) -> None:
        now_s = perf_counter()
        if not self._head:
            self._body += data
            end = self._body.find(b"\r\n\r\n")
            if end < 0:
                return
            self._head = bytes(self._body[: end + 2]).lower()
            data = bytes(self._body[end + 4 :])
            self._body.clear()
            length = _value(self._head, b"content-length")
            self._body_bytes = int(length) if length else -1
        if data and not self._first_s:
            self._first_s = now_s
        self._body += data
        if self._body_bytes >= 0:
            whole = len(self._body) >= self._body_bytes
        else:
            whole = self._body.endswith(b"\r\n0\r\n\r\n")
        if whole:
            self._finish(now_s)

    def connection_lost(self, error: Exception | None) -> None:
        if hasattr(self, "_done") and not self._done.done():
            self._done.set_exception(WrongAnswer("the connection was lost"))

    def close(self) -> None:
        self._transport.close()

    def _finish(self, now_s: float) -> None:
        if not self._head.startswith(b"http/1.1 200"):
            self._done.set_exception(WrongAnswer(bytes(self._head[:20] + self._body[:300]).decode(errors="replace")))
        elif self._body.count(b"data: ") != self._events:
            self._done.set_exception(WrongAnswer(f"{self._body.count(b'data: ')} events, not {self._events}"))
        else:
            overhead, queue = _value(self._head, b"x-amf-overhead-ms"), _value(self._head, b"x-amf-queue-ms")
            self._done.set_result(
                Sample(
                    self._first_s - self._started_s,
                    now_s - self._started_s,
                    float(overhead or -1),
                    float(queue or -1),
                )
            )


def _value(head: bytes, name: bytes) -> bytes | None:
    start = head.find(b"\r\n" + name + b":")
    if start < 0:
        return None
    start += len(name) + 3
    return head[start : head.index(b"\r\n", start)].strip()


async def connect(url: str) -> Connection:
    where = urlsplit(url)
    _, connection = await asyncio.get_running_loop().create_connection(Connection, where.hostname, where.port)
    return connection


async def press(url: str, requests: list[bytes], events: int, *, connections: int, seconds: float) -> list[Sample]:
    """Keep so many requests open for so long; each connection goes its own way through `requests`. Raises WrongAnswer."""
    opened = [await connect(url) for _ in range(connections)]
    ends_s = perf_counter() + seconds
    samples: list[Sample] = []

    async def go(connection: Connection, turn: int) -> None:
        while perf_counter() < ends_s:
            samples.append(await connection.ask(requests[turn % len(requests)], events))
            turn += connections

    try:
        async with asyncio.TaskGroup() as group:
            for number, connection in enumerate(opened):
                group.create_task(go(connection, number))
    finally:
        for connection in opened:
            connection.close()
    return samples

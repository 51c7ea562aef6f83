"""One publisher's KV events as a gapless stream, or the word that it has a gap.

Batches are numbered from 0 for the life of the engine. A jump ahead means that some were lost on the way: the publisher
is asked to send them again, beginning with the last one that we know, so that the answer also proves to come from the
same life of the engine (a restarted one counts anew and would fill the gap with other blocks). A number that is not
ahead means a restart. Whatever cannot be healed becomes CacheCleared, and the stream goes on from there. The first
number met is accepted as it is, after an attempt to fetch what came before.

ZMQ itself reconnects to a publisher that died and came back; its heartbeats find peers that vanished without a word.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import zmq
import zmq.asyncio
from xxhash import xxh3_64_intdigest

from amf.engines.engine import CacheCleared
from amf.engines.held import HeldBlocks
from amf.engines.kvwire import BatchDecoder, KvEvent, MalformedBatch

_REPLAY_END = b"\xff" * 8
_SILENCE_MS = 1_000  # vLLM looks for replay questions ten times a second
_RESTARTED = CacheCleared(reason="the engine restarted")
_SOCKET_OPTIONS = (
    (zmq.LINGER, 0),
    (zmq.RCVHWM, 100_000),  # batches; as many as vLLM's publisher keeps by default
    (zmq.MAXMSGSIZE, 256 * 1024 * 1024),
    (zmq.RECONNECT_IVL, 100),  # ms, as are those below
    (zmq.RECONNECT_IVL_MAX, 5_000),
    (zmq.HEARTBEAT_IVL, 5_000),
    (zmq.HEARTBEAT_TIMEOUT, 15_000),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KvSource:
    """Where one publisher sends (ZMQ PUB), and where it sends again (ROUTER; None: it does not). `copies`: its engine may hold
    a block several times and tells of each copy; otherwise it holds a block or not, and may tell of it again. `siblings`: the
    worker has other publishers, of other ranks."""

    endpoint: str
    replay_endpoint: str | None = None
    copies: bool = True
    siblings: bool = False


@dataclass(frozen=True, slots=True)
class _Batch:
    number: int
    payload: bytes


class KvFeed:
    """Subscribes to one publisher. `replay_timeout_s` bounds each wait for lost batches."""

    def __init__(self, source: KvSource, replay_timeout_s: float) -> None:
        self._source = source
        self._replay_timeout_s = replay_timeout_s
        self._decoder = BatchDecoder()
        self._held = None if source.copies else HeldBlocks(alone=not source.siblings)
        self._last: int | None = None  # the number of the last batch taken in
        self._last_digest = 0

    async def events(self) -> AsyncIterator[KvEvent]:
        """All events, for ever: ends by cancellation. Raises zmq.ZMQError if the endpoint is not one."""
        with _socket(zmq.SUB, self._source.endpoint) as socket:
            socket.setsockopt(zmq.SUBSCRIBE, b"")
            while True:
                frames = await socket.recv_multipart()
                if len(frames) != 3 or len(frames[1]) != 8:
                    continue
                for item in await self._with_missed(_Batch(int.from_bytes(frames[1], "big"), frames[2])):
                    for event in self._decode(item) if isinstance(item, _Batch) else [item]:
                        for news in (event,) if self._held is None else self._held.news(event):
                            yield news

    async def _with_missed(self, batch: _Batch) -> list[_Batch | CacheCleared]:
        """The batch, after whatever must be taken in before it."""
        number, last = batch.number, self._last
        if last is None:
            return [*await self._replay(0, number), batch]
        if number == last + 1:
            return [batch]
        if number <= last:
            return [_RESTARTED, *await self._replay(0, number), batch]
        row = await self._replay(last, number)
        if not row or row[0].number != last:
            lost = CacheCleared(reason=f"events lost: {number - last - 1} batches, of which {len(row)} were sent again")
            return [lost, *row, batch]
        if xxh3_64_intdigest(row[0].payload) != self._last_digest:
            return [_RESTARTED, *await self._replay(0, number), batch]
        return [*row[1:], batch]

    def _decode(self, batch: _Batch) -> list[KvEvent]:
        self._last, self._last_digest = batch.number, xxh3_64_intdigest(batch.payload)
        try:
            return self._decoder.decode(batch.payload)
        except MalformedBatch:
            return [CacheCleared(reason="events lost: a batch could not be read")]

    async def _replay(self, first: int, end: int) -> list[_Batch]:
        """The longest row of batches up to, not including, `end` that the publisher still has, from `first` at most.

        A long answer overflows the publisher's queue and loses its later part, so the question is repeated from there.
        """
        row: list[_Batch] = []
        wanted = first
        try:
            async with asyncio.timeout(self._replay_timeout_s):
                while wanted < end and (part := await self._replay_part(wanted, end)):
                    if part[0].number != wanted:
                        row.clear()
                    row += part
                    wanted = part[-1].number + 1
        except (TimeoutError, zmq.ZMQError):
            pass
        return row if row and wanted == end else []

    async def _replay_part(self, first: int, end: int) -> list[_Batch]:
        """One answer, as far as it is without a hole."""
        part: list[_Batch] = []
        if self._source.replay_endpoint is None:
            return part
        with _socket(zmq.DEALER, self._source.replay_endpoint) as socket:
            await socket.send_multipart([b"", first.to_bytes(8, "big")])
            while await socket.poll(_SILENCE_MS):
                batch = _replayed(await socket.recv_multipart())
                if batch is None or batch.number >= end or (part and batch.number != part[-1].number + 1):
                    break
                if batch.number >= first:
                    part.append(batch)
                if batch.number == end - 1:
                    break
        return part


def _replayed(frames: list[bytes]) -> _Batch | None:
    """One message of a replay, [empty, topic, number, payload]; None at its end, or where it is not that."""
    if len(frames) < 3 or len(frames[-2]) != 8 or frames[-2] == _REPLAY_END:
        return None
    return _Batch(int.from_bytes(frames[-2], "big"), frames[-1])


@contextmanager
def _socket(kind: int, endpoint: str) -> Iterator[zmq.asyncio.Socket]:
    socket = zmq.asyncio.Context.instance().socket(kind)
    try:
        for option, value in _SOCKET_OPTIONS:
            socket.setsockopt(option, value)
        socket.setsockopt(zmq.IPV6, int("[" in endpoint))
        socket.connect(endpoint)
        yield socket
    finally:
        socket.close(linger=0)

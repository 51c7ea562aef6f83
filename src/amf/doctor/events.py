"""KV events: are they on, can they be reached from here, and (with a probe) does one arrive and name the prompt's tokens?"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Protocol, runtime_checkable

import zmq
import zmq.asyncio

from amf.doctor.findings import Finding, fail, ok, warn
from amf.doctor.patient import Patient
from amf.doctor.vllm import KV_EVENTS_FLAG
from amf.engines.engine import BlocksStored, EngineError
from amf.engines.kvfeed import KvFeed, KvSource

_REACH_S = 2.0
_REPLAY_S = 3.0
_ARRIVE_S = 1.0  # an event, after the answer to its call
_NUMBER_BYTES = 8
_FAR_FUTURE = (2**62).to_bytes(
    _NUMBER_BYTES, "big"
)  # nothing was published from there on: only the end mark comes back
_PORTS = "let this machine reach the port, or set `{key}` of this [[worker]] to the address by which it can"


@runtime_checkable
class TellsSources(Protocol):
    """An engine that publishes KV events says where."""

    async def kv_sources(self) -> tuple[KvSource, ...]: ...


async def sources_of(patient: Patient) -> tuple[KvSource, ...]:
    """Empty where it publishes none or does not say."""
    if not isinstance(patient.engine, TellsSources):
        return ()
    try:
        return await patient.engine.kv_sources()
    except EngineError:
        return ()


async def events(patient: Patient) -> list[Finding]:
    """Without a call. An engine whose adapter knows of no events has no finding."""
    if not isinstance(patient.engine, TellsSources):
        return []
    sources = await sources_of(patient)
    if not sources:
        since = "" if patient.tokenizer else " (text mode follows them from vLLM 0.32 on)"
        fix = f"start vLLM with {KV_EVENTS_FLAG}" if patient.info and patient.info.engine == "vllm" else "publish them"
        return [warn("KV events", f"off: warmth is predicted, evictions are not seen{since}", fix)]
    found = [finding for source in sources for finding in await _reached(source)]
    if patient.tokenizer is None and patient.info and not patient.info.capabilities.attributed_events:
        seen = "on, but they do not name requests and the pool is in text mode, so they are not followed"
        found.append(warn("KV events used", seen, f'[pools."{patient.model}"] tokenizer = "engine" or a directory'))
    return found


async def _reached(source: KvSource) -> list[Finding]:
    found = []
    if await _subscribes(source.endpoint):
        found.append(ok("KV events", f"published at {source.endpoint}, which takes subscribers"))
    else:
        seen = f"published at {source.endpoint}, where no ZMQ publisher can be reached from here"
        found.append(fail("KV events", seen, _PORTS.format(key="kv_events_endpoint")))
    if source.replay_endpoint is None:
        seen = "no replay endpoint: one lost batch, and what was believed of this worker is forgotten"
        found.append(warn("KV replay", seen, 'add "replay_endpoint":"tcp://*:5558" to --kv-events-config'))
    elif await _replays(source.replay_endpoint):
        found.append(ok("KV replay", f"{source.replay_endpoint} answers"))
    else:
        seen = f"{source.replay_endpoint} does not answer within {_REPLAY_S:g} s"
        found.append(fail("KV replay", seen, _PORTS.format(key="kv_replay_endpoint")))
    return found


async def _subscribes(endpoint: str) -> bool:
    """Whether somebody there speaks ZMQ with a subscriber."""
    try:
        with _socket(zmq.SUB, endpoint) as socket:
            monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
            try:
                socket.setsockopt(zmq.SUBSCRIBE, b"")
                socket.connect(endpoint)
                return bool(await monitor.poll(1000 * _REACH_S))
            finally:
                socket.disable_monitor()
                monitor.close(linger=0)
    except zmq.ZMQError:
        return False


async def _replays(endpoint: str) -> bool:
    """Whether a question for batches that do not exist yet gets an answer of the right form: its end mark, or a batch."""
    try:
        with _socket(zmq.DEALER, endpoint) as socket:
            socket.connect(endpoint)
            await socket.send_multipart([b"", _FAR_FUTURE])
            frames = await socket.recv_multipart() if await socket.poll(1000 * _REPLAY_S) else []
            return len(frames) > 2 and len(frames[-2]) == _NUMBER_BYTES
    except zmq.ZMQError:
        return False


@contextmanager
def _socket(kind: int, endpoint: str) -> Iterator[zmq.asyncio.Socket]:
    socket = zmq.asyncio.Context.instance().socket(kind)
    try:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.IPV6, int("[" in endpoint))
        yield socket
    finally:
        socket.close(linger=0)


class Heard:
    """Stored blocks that arrived while listening."""

    def __init__(self) -> None:
        self.stored: list[BlocksStored] = []
        self._more = asyncio.Event()

    def add(self, event: BlocksStored) -> None:
        self.stored.append(event)
        self._more.set()

    async def until(self, fact: Callable[[], bool], limit_s: float) -> bool:
        """Whether the fact comes about in time; looked at with every event."""
        try:
            async with asyncio.timeout(limit_s):
                while not fact():
                    self._more.clear()
                    await self._more.wait()
        except TimeoutError:
            return False
        return True


@asynccontextmanager
async def listening(sources: Sequence[KvSource]) -> AsyncIterator[Heard]:
    """Subscribed to all sources, without what they sent before."""
    heard = Heard()

    async def follow(source: KvSource) -> None:
        feed = KvFeed(KvSource(endpoint=source.endpoint), replay_timeout_s=0.0)
        async for event in feed.events():
            if isinstance(event, BlocksStored):
                heard.add(event)

    tasks = [asyncio.create_task(follow(source)) for source in sources]
    try:
        yield heard
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def names_tokens(stored: Sequence[BlocksStored], tokens: Sequence[int]) -> bool:
    """Whether some chain of blocks begins as these tokens do."""
    return any(
        event.parent_hash is None and list(event.token_ids) == list(tokens[: len(event.token_ids)])
        for event in stored
        if event.token_ids
    )


async def heard_of(
    send: Callable[[], Awaitable[object]], heard: Heard, mine: Callable[[], bool], tries: int = 3
) -> bool:
    """Send until an event of it arrives: a subscription takes a moment to reach its publisher, so the first may pass by."""
    for _ in range(tries):
        await send()
        if await heard.until(mine, _ARRIVE_S):
            return True
    return False

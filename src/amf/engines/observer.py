"""Keeps looking at one engine: its load at an interval, its KV events as they come or as they are asked for, all into one
bounded stream.

An engine that goes away is asked again and again, with growing pauses. Where its events are is asked anew when it is
back, and now and then in case nobody saw it go: a new life may publish them elsewhere. If the reader of the stream falls
behind, events wait in the ZMQ queue, or in the engine that is not asked meanwhile; what these cannot hold becomes a gap,
which is noticed by the events' numbers.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import zmq

from amf.engines.engine import CacheCleared, EngineError, LoadReport, Observation
from amf.engines.kvfeed import KvFeed, KvSource
from amf.engines.options import EngineLimits

logger = logging.getLogger(__name__)


class Observer:
    """One stream of observations. `load`, `sources` and `poll` ask the engine and may raise EngineError. `poll`: for the
    events since it was asked last, of an engine that does not publish them."""

    def __init__(
        self,
        load: Callable[[], Awaitable[LoadReport | None]],
        sources: Callable[[], Awaitable[tuple[KvSource, ...]]],
        limits: EngineLimits,
        poll: Callable[[], Awaitable[Sequence[Observation]]] | None = None,
    ) -> None:
        self._load = load
        self._poll = poll
        self._sources = sources
        self._limits = limits
        self._queue: asyncio.Queue[Observation | None] = asyncio.Queue(limits.observation_queue_size)
        self._feeds: dict[KvSource, asyncio.Task[None]] = {}

    async def observations(self) -> AsyncIterator[Observation]:
        """What is seen, until `stop`."""
        watch = asyncio.create_task(self._watch())
        watch.add_done_callback(lambda _: self.stop())
        try:
            while (observation := await self._queue.get()) is not None:
                yield observation
            if watch.done() and not watch.cancelled():
                watch.result()
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    def stop(self) -> None:
        """End the stream; what is still queued is dropped."""
        while not self._queue.empty():
            self._queue.get_nowait()
        self._queue.put_nowait(None)

    async def _watch(self) -> None:
        async with asyncio.TaskGroup() as group:
            now_s = asyncio.get_running_loop().time
            pause_s, discover_at_s = self._limits.observe_interval_s, now_s()
            while True:
                try:
                    if now_s() >= discover_at_s:
                        await self._follow(group, await self._sources())
                        discover_at_s = now_s() + self._limits.discover_interval_s
                    if self._poll is not None:
                        for event in await self._poll():
                            await self._queue.put(event)
                    if (report := await self._load()) is not None:
                        await self._queue.put(report)
                    pause_s = self._limits.observe_interval_s
                except EngineError:
                    pause_s, discover_at_s = min(2 * pause_s, self._limits.reconnect_max_s), now_s()
                await asyncio.sleep(pause_s)

    async def _follow(self, group: asyncio.TaskGroup, sources: tuple[KvSource, ...]) -> None:
        """Listen to these publishers and to no others."""
        for gone in [source for source in self._feeds if source not in sources]:
            self._feeds.pop(gone).cancel()
            await self._queue.put(CacheCleared(reason="the engine publishes its events elsewhere now"))
        for source in sources:
            if source not in self._feeds:
                self._feeds[source] = group.create_task(self._listen(source))

    async def _listen(self, source: KvSource) -> None:
        try:
            async for event in KvFeed(source, self._limits.replay_timeout_s).events():
                await self._queue.put(event)
        except zmq.ZMQError as error:
            logger.warning("KV events are not available at %s: %s", source.endpoint, error)

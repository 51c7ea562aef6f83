"""The tie to one worker: probed until it answers, watched while it is up, taken out when it fails, tried again after a
pause. Each turn of its fate is told to the fabric as an event.

The circuit breaker counts failures in a row, of health checks and of calls apart, since an engine may answer the ones and
fail the others. When it opens, the worker is lost to the fabric; after a pause a probe and a health check that succeed let
it join again, with nothing believed about its cache. The pause doubles with every loss until a call succeeds.
"""

import asyncio
import contextlib
import logging
from dataclasses import replace
from enum import StrEnum
from typing import Protocol, runtime_checkable

import aiohttp

from amf.config import ConfigError, LimitsConfig, WorkerConfig
from amf.core.events import (
    PrefixesCleared,
    PrefixEvicted,
    PrefixStored,
    WorkerDraining,
    WorkerJoined,
    WorkerLost,
    WorkerReported,
)
from amf.core.types import Prefix, Tier, Worker
from amf.engines.attribution import Attribution
from amf.engines.blockindex import BlockIndex
from amf.engines.choose import connect
from amf.engines.engine import (
    BlocksRemoved,
    BlocksStored,
    CacheCleared,
    Engine,
    EngineError,
    EngineInfo,
    EngineRequest,
    LoadReport,
    Observation,
)
from amf.engines.options import EngineLimits, EngineOptions
from amf.gateway.driver import Driver
from amf.gateway.profiles import options_of, pool_of, sees_events, worker_of

log = logging.getLogger("amf.fleet")

_TIERS = {  # by the names that vLLM and SGLang give their media
    "GPU": Tier.HBM,
    "CPU": Tier.DRAM,
    "CPU_PINNED": Tier.DRAM,
    "DISK": Tier.DISK,
    "STORAGE": Tier.DISK,
    "EXTERNAL": Tier.DISK,
}


class LinkStatus(StrEnum):
    CONNECTING = "connecting"
    UP = "up"
    DRAINING = "draining"
    LOST = "lost"


class Watcher(Protocol):
    """Who hears of a link's turns, and knows which pools have exact prefixes: token hashes, which KV events can match."""

    def changed(self, link: "Link") -> None: ...

    def is_exact(self, pool: str) -> bool: ...


@runtime_checkable
class TellsLoad(Protocol):
    """An engine that can be asked for its load alone, without its KV events."""

    async def load(self) -> LoadReport | None: ...


class Link:
    def __init__(
        self,
        name: str,
        config: WorkerConfig,
        limits: LimitsConfig,
        driver: Driver,
        watcher: "Watcher",
    ) -> None:
        self.name = name
        self.config = config
        self.status = LinkStatus.CONNECTING
        self.engine: Engine | None = None
        self.info: EngineInfo | None = None
        self.worker: Worker | None = None
        self.exact = False  # see Watcher.is_exact
        self.reason = "not reached yet"  # why it is not up
        self.life = 0  # grows whenever what was told of its cache may hold no more
        self.first_look = asyncio.Event()  # set after the first attempt to reach it
        self._limits = limits
        self._driver = driver
        self._watcher = watcher
        self._failed_calls = 0
        self._failed_checks = 0
        self._pause_s = limits.retry_min_s
        self._broken = asyncio.Event()
        self._suspended = False  # the fabric still knows it, as draining
        self._index = BlockIndex()
        self._attribution = Attribution()
        self._task: asyncio.Task[None] | None = None

    def start(self, session: aiohttp.ClientSession) -> None:
        self._task = asyncio.create_task(self._live(session), name=f"worker {self.name}")
        self._task.add_done_callback(lambda _: self.first_look.set())  # whoever waits for it must not wait for ever

    async def stop(self, reason: str) -> None:
        """Remove the worker: the fabric places its calls anew."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self.first_look.set()
        self._lose(reason)
        if self.engine is not None:
            await self.engine.close()

    def drain(self) -> None:
        """Take no new call. Stays so until the worker is removed."""
        self.status = LinkStatus.DRAINING
        self._driver.submit(WorkerDraining, name=self.name)
        self._watcher.changed(self)

    def call_succeeded(self) -> None:
        self._failed_calls = 0
        self._pause_s = self._limits.retry_min_s

    def call_failed(self, reason: str) -> None:
        """A call failed by the worker's fault. After too many in a row it takes no new call until it has been probed again;
        calls that run there may yet end well."""
        self._failed_calls += 1
        if self._failed_calls >= self._limits.breaker_failures and self.status is LinkStatus.UP:
            log.warning("worker suspended", extra={"worker": self.name, "reason": reason})
            self.status, self.reason, self._suspended = LinkStatus.LOST, reason, True
            self._driver.submit(WorkerDraining, name=self.name)
            self._watcher.changed(self)
            self._broken.set()

    async def _live(self, session: aiohttp.ClientSession) -> None:
        while True:
            try:
                if await self._join(session):
                    async with asyncio.TaskGroup() as tasks:
                        watching = tasks.create_task(self._observe())
                        await self._watch_health()
                        watching.cancel()
            except Exception as error:  # whatever an engine makes us stumble on, its link goes on
                log.error("the link to a worker failed", exc_info=error, extra={"worker": self.name})
                self._lose(f"its link failed ({type(error).__name__})")
            self.first_look.set()
            await asyncio.sleep(self._pause_s)
            self._pause_s = min(2 * self._pause_s, self._limits.retry_max_s)

    async def _join(self, session: aiohttp.ClientSession) -> bool:
        try:
            if self.engine is None:
                self.engine = await connect(self.config.url, session, self._options())
            self.info = await self.engine.probe()
            if not await self.engine.healthy():
                raise EngineError("its health check fails")
            self.exact = self._watcher.is_exact(pool_of(self.config, self.name, self.info))
            self.worker = worker_of(self.config, self.name, self.info, exact=self.exact)
        except (EngineError, ConfigError) as error:
            if self.reason != str(error):
                log.warning("worker not usable", extra={"worker": self.name, "reason": str(error)})
            self.reason = str(error)
            if self._suspended:
                self._lose(self.reason)
            return False
        draining = self.status is LinkStatus.DRAINING
        self.status, self.reason = LinkStatus.UP, ""
        self._failed_calls = self._failed_checks = 0
        self._broken.clear()
        self._index.clear()
        self._attribution.clear()
        self.life += 1
        self._watcher.changed(self)
        self._driver.submit(WorkerJoined, worker=self.worker)
        if self._suspended and self.worker.has_kv_events:
            self._driver.submit(PrefixesCleared, name=self.name, reason="its events were not followed for a while")
        self._suspended = False
        if draining:
            self.drain()
        log.info("worker up", extra={"worker": self.name, "pool": self.worker.pool, "kv_tokens": self.worker.kv_tokens})
        self.first_look.set()
        return True

    async def _watch_health(self) -> None:
        """Until the breaker opens."""
        assert self.engine is not None
        while not self._broken.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limits.health_interval_s):
                    await self._broken.wait()
                    return
            self._failed_checks = 0 if await self.engine.healthy() else self._failed_checks + 1
            if self._failed_checks >= self._limits.breaker_failures:
                self._break("its health check fails")

    async def _observe(self) -> None:
        engine = self.engine
        assert engine is not None
        assert self.info is not None
        if not sees_events(self.info, exact=self.exact) and isinstance(engine, TellsLoad):
            while True:
                with contextlib.suppress(EngineError):
                    report = await engine.load()
                    if report is not None:
                        self._told(report)
                await asyncio.sleep(self._limits.observe_interval_s)
        async for observation in engine.observe():
            self._told(observation)

    def follow(self, request: EngineRequest, prefix: Prefix) -> EngineRequest:
        """The request as it is sent, of a prompt that is known by its text: where the engine's KV events name requests, it is
        told this one's own id, so that its blocks can be told from others."""
        if not self._attributes:
            return request
        self._attribution.sent(request.request_id, prefix.keys, prefix.ends, prefix.total_tokens)
        return replace(request, session_id=request.request_id)

    def call_read(self, request_id: str, prompt_tokens: int) -> None:
        """The whole answer was read."""
        if self._attributes:
            self._stored(self._attribution.answered(request_id, prompt_tokens))

    @property
    def _attributes(self) -> bool:
        return not self.exact and self.worker is not None and self.worker.has_kv_events

    def _stored(self, keys: tuple[int, ...], medium: str = "GPU") -> None:
        if keys:
            self._driver.submit(PrefixStored, name=self.name, keys=keys, tier=_tier(medium))

    def _evicted(self, keys: tuple[int, ...], medium: str = "GPU") -> None:
        if keys:
            self._driver.submit(PrefixEvicted, name=self.name, keys=keys, tier=_tier(medium))

    def _told(self, observation: Observation) -> None:
        """What the engine says of itself, as events. KV events mean something where prefixes are token hashes, or where they
        name the request that stored a block."""
        match observation:
            case LoadReport(running=running, waiting=waiting, kv_used_ratio=ratio):
                self._driver.submit(
                    WorkerReported, name=self.name, running=running, waiting=waiting, kv_used_ratio=ratio
                )
            case BlocksStored() if self.exact:
                self._stored(self._index.stored(observation), observation.medium)
            case BlocksRemoved() if self.exact:
                self._evicted(self._index.removed(observation), observation.medium)
            case BlocksStored():
                self._stored(self._attribution.stored(observation))
            case BlocksRemoved():
                self._evicted(self._attribution.removed(observation))
            case CacheCleared(reason=reason):
                self._index.clear()
                self._attribution.clear()
                self.life += 1
                self._driver.submit(PrefixesCleared, name=self.name, reason=reason)

    def _break(self, reason: str) -> None:
        if self.status in (LinkStatus.UP, LinkStatus.DRAINING):
            log.warning("worker lost", extra={"worker": self.name, "reason": reason})
            self._lose(reason)
            self._broken.set()

    def _lose(self, reason: str) -> None:
        if self._suspended or self.status in (LinkStatus.UP, LinkStatus.DRAINING):
            self._driver.submit(WorkerLost, name=self.name, reason=reason)
        self._suspended = False
        if self.status is not LinkStatus.DRAINING:
            self.status = LinkStatus.LOST
        self.reason = reason
        self._watcher.changed(self)

    def _options(self) -> EngineOptions:
        limits = self._limits
        return options_of(
            self.config,
            EngineLimits(
                connect_timeout_s=limits.connect_timeout_s,
                head_timeout_s=limits.head_timeout_s,
                stall_timeout_s=limits.stall_timeout_s,
                observe_interval_s=limits.observe_interval_s,
            ),
        )


def _tier(medium: str) -> Tier:
    return _TIERS.get(medium.upper(), Tier.DRAM)

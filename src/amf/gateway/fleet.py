"""The workers: from the configuration, the command line and the control API, each behind its own `Link`."""

import asyncio
from dataclasses import asdict, replace
from typing import Any

import aiohttp

from amf.config import LimitsConfig, WorkerConfig
from amf.core.types import Prefix
from amf.engines.engine import Engine, EngineInfo, EngineRequest
from amf.engines.http import open_session
from amf.gateway.driver import Driver
from amf.gateway.link import Link, LinkStatus
from amf.gateway.metrics import Metrics
from amf.gateway.pools import Pools
from amf.gateway.problem import Problem
from amf.gateway.profiles import check_assumptions, name_of


class Fleet:
    """Use as an async context manager: leaving it stops every link and closes the connections."""

    def __init__(self, driver: Driver, pools: Pools, metrics: Metrics, limits: LimitsConfig) -> None:
        self._driver = driver
        self._pools = pools
        self._metrics = metrics
        self._limits = limits
        self._links: dict[str, Link] = {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Fleet":
        self._session = open_session()
        return self

    async def __aexit__(self, *failure: object) -> None:
        await asyncio.gather(*(link.stop("the gateway stops") for link in self._links.values()))
        self._links.clear()
        if self._session is not None:
            await self._session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        assert self._session is not None
        return self._session

    async def add(self, config: WorkerConfig) -> Link:
        """Take in a worker and look at it once; one that does not answer yet joins when it does. Raises Problem (409) if its
        name is taken, ConfigError for hardware nobody has heard of."""
        check_assumptions(config)
        name = name_of(config)
        if name in self._links:
            message = f"There is a worker `{name}` already: remove it first, or give this one another `name`."
            raise Problem(409, "worker_exists", message, retry=False)
        link = Link(name, replace(config, name=name), self._limits, self._driver, self)
        self._links[name] = link
        link.start(self.session)
        await link.first_look.wait()
        return link

    async def remove(self, name: str) -> None:
        """Raises Problem (404) if there is no such worker."""
        link = self._link(name)
        del self._links[name]
        await link.stop("it was removed")
        self._pools.delist(name)
        self._metrics.worker_up.remove(name)

    def drain(self, name: str) -> None:
        """Raises Problem (404) if there is no such worker."""
        self._link(name).drain()

    def engine(self, name: str) -> Engine | None:
        link = self._links.get(name)
        return link.engine if link is not None else None

    def address_of_pool(self, pool: str) -> tuple[str, dict[str, str]] | None:
        """URL and login headers of some engine of the pool that is up, for questions any of them can answer."""
        for link in self._links.values():
            if link.status is LinkStatus.UP and link.worker is not None and link.worker.pool == pool and link.engine:
                key = link.config.api_key
                return link.engine.url, {"Authorization": f"Bearer {key}"} if key else {}
        return None

    def offloading(self, pool: str) -> list[Link]:
        """The pool's workers that are up, have exact prompts, and are an instance of LMCache."""
        links = self._links.values()
        return [
            link
            for link in links
            if link.status is LinkStatus.UP
            and link.exact
            and link.config.lmcache_instance
            and link.worker is not None
            and link.worker.pool == pool
        ]

    def logs_in(self, name: str) -> bool:
        """Whether the gateway logs in at this worker with a key of its own, instead of the client with his."""
        link = self._links.get(name)
        return link is not None and link.config.api_key is not None

    def follow(self, name: str, request: EngineRequest, prefix: Prefix) -> EngineRequest:
        """See `Link.follow`."""
        link = self._links.get(name)
        return link.follow(request, prefix) if link is not None else request

    def call_read(self, name: str, request_id: str, prompt_tokens: int) -> None:
        """See `Link.call_read`."""
        if name in self._links:
            self._links[name].call_read(request_id, prompt_tokens)

    def call_succeeded(self, name: str) -> None:
        if name in self._links:
            self._links[name].call_succeeded()

    def call_failed(self, name: str, reason: str) -> None:
        if name in self._links:
            self._links[name].call_failed(reason)

    def up(self) -> int:
        return sum(link.status is LinkStatus.UP for link in self._links.values())

    def describe(self, name: str) -> dict[str, Any]:
        """What the gateway knows of a worker. Raises Problem (404)."""
        link = self._link(name)
        worker, info = link.worker, link.info
        return {
            "name": name,
            "url": link.config.url,
            "status": str(link.status),
            "reason": link.reason,
            "pool": worker.pool if worker else link.config.model,
            "models": list(info.models) if info else [],
            "engine": info.engine if info else link.config.engine,
            "version": info.version if info else None,
            "kv_tokens": worker.kv_tokens if worker else link.config.kv_tokens,
            "block_tokens": worker.block_tokens if worker else link.config.block_tokens,
            "in_flight": self._driver.in_flight[name],
            "exact": link.exact,
            "weights": link.config.weights,
            "tensor_parallel": link.config.tensor_parallel,
            "lmcache_instance": link.config.lmcache_instance,
            **_told_by_engine(info, worker.pool if worker else None),
        }

    def names(self) -> list[str]:
        return sorted(self._links)

    def _link(self, name: str) -> Link:
        link = self._links.get(name)
        if link is None:
            known = ", ".join(self.names()) or "none"
            raise Problem(404, "worker_not_found", f"There is no worker `{name}`; known: {known}.", retry=False)
        return link

    def is_exact(self, pool: str) -> bool:
        return self._pools.encoder(pool) is not None

    def changed(self, link: Link) -> None:
        self._metrics.worker_up.labels(link.name).set(1 if link.status is LinkStatus.UP else 0)
        worker, info = link.worker, link.info
        if worker is not None and info is not None and link.status is LinkStatus.UP:
            self._pools.enlist(link.name, worker.pool, info.models, worker.block_tokens)


def _told_by_engine(info: EngineInfo | None, pool: str | None) -> dict[str, Any]:
    """What else a worker's engine said of itself; None while it has not been asked, and where it does not say."""
    return {
        "root": info.roots.get(pool or "") if info else None,
        "max_model_tokens": info.max_model_tokens if info else None,
        "kv_format": info.kv_format if info else None,
        "hash_algorithm": info.hash_algorithm if info else None,
        "capabilities": asdict(info.capabilities) if info else None,
    }

"""What adapters share whose engine can be asked for its load and publishes KV events over ZMQ."""

import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec

from amf.engines.engine import LoadReport, Observation
from amf.engines.http import HttpEngine
from amf.engines.kvfeed import KvSource
from amf.engines.observer import Observer
from amf.engines.options import EngineOptions

_ANY_ADDRESS = re.compile(r"^tcp://(?:\*|0\.0\.0\.0|\[::\]|::):")


class ObservedEngine(HttpEngine, ABC):
    """An adapter says where load and events are; this class looks there for as long as it is open."""

    def __init__(self, url: str, session: aiohttp.ClientSession, options: EngineOptions) -> None:
        super().__init__(url, session, options)
        self._observers: set[Observer] = set()

    @abstractmethod
    async def load(self) -> LoadReport | None:
        """The engine's load now, summed over its data-parallel ranks; None if it does not tell. Raises EngineError."""

    @abstractmethod
    async def kv_sources(self) -> tuple[KvSource, ...]:
        """The engine's event publishers, as options say or else as it says itself. Raises EngineError if it is away."""

    async def observe(self) -> AsyncIterator[Observation]:
        """Load and cache truth until the adapter is closed, through the engine's deaths and returns."""
        if self._closed.is_set():
            return
        observer = Observer(self.load, self.kv_sources, self.options.limits)
        self._observers.add(observer)
        try:
            async for observation in observer.observations():
                yield observation
        finally:
            self._observers.discard(observer)

    async def close(self) -> None:
        """End all observation; what is being generated may finish. Later calls raise EngineError."""
        await super().close()
        for observer in tuple(self._observers):
            observer.stop()

    async def _metrics(self) -> str:
        status, page = await self.get("/metrics")
        return page.decode("utf-8", "replace") if status == 200 else ""

    async def _optional_json(self, path: str) -> Any:
        """What an endpoint tells that older or other releases lack. Raises EngineError only if the engine is away."""
        status, body = await self.get(path)
        try:
            return msgspec.json.decode(body) if status == 200 else None
        except msgspec.DecodeError:
            return None

    def _reachable(self, endpoint: Any) -> str | None:
        """A ZMQ address that the engine told, with the engine's host where it says "any address"."""
        if not isinstance(endpoint, str) or not endpoint.startswith(("tcp://", "ipc://")):
            return None
        host = urlsplit(self.url).hostname or ""
        return _ANY_ADDRESS.sub(f"tcp://[{host}]:" if ":" in host else f"tcp://{host}:", endpoint)

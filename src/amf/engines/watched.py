"""What adapters have in common whose engine can be looked at: its load at an interval, and its KV events if it has any."""

import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from amf.engines.engine import LoadReport, Observation
from amf.engines.http import HttpEngine
from amf.engines.kvfeed import KvSource
from amf.engines.observer import Observer
from amf.engines.options import EngineOptions

_ANY_ADDRESS = re.compile(r"^tcp://(?:\*|0\.0\.0\.0|\[::\]|::):")


class WatchedEngine(HttpEngine, ABC):
    """An adapter says how its engine's load is asked and, where it has KV events, where they are."""

    def __init__(self, url: str, session: aiohttp.ClientSession, options: EngineOptions) -> None:
        super().__init__(url, session, options)
        self._observers: set[Observer] = set()

    @abstractmethod
    async def load(self) -> LoadReport | None:
        """The engine's load now; None if it does not tell. Raises EngineError."""

    async def kv_sources(self) -> tuple[KvSource, ...]:
        """The engine's event publishers: none, unless an adapter knows better. Raises EngineError if it is away."""
        return ()

    async def observe(self) -> AsyncIterator[Observation]:
        """Load and cache truth until the adapter is closed, through the engine's deaths and returns."""
        if self._closed.is_set():
            return
        observer = self._observer()
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

    def _observer(self) -> Observer:
        return Observer(self.load, self.kv_sources, self.options.limits)

    def _reachable(self, endpoint: Any) -> str | None:
        """A ZMQ address that the engine told, with the engine's host where it says "any address"."""
        if not isinstance(endpoint, str) or not endpoint.startswith(("tcp://", "ipc://")):
            return None
        host = urlsplit(self.url).hostname or ""
        return _ANY_ADDRESS.sub(f"tcp://[{host}]:" if ":" in host else f"tcp://{host}:", endpoint)

"""TensorRT-LLM (trtllm-serve): load from its iteration statistics, cache truth from the events that it hands out, and the
fabric's urgency as the priority in the body.

Both are told once, to whoever asks first: what a look brings is this adapter's, and nobody else may look. So the probe, which
must ask in order to learn whether there are events, leaves what it was given to the observation that follows it.

This engine refuses a body with a member that it does not know. Nothing but the priority is added, and that only where the
user says that the engine has it. Its other levers are left alone. `conversation_params` and `agent_hierarchy` would cost the
whole call on a release without them, and what they change in the engine's own order is not known here;
`truncate_tokens` wants the tokens of what may go, which nobody holds when a run ends.

Written from the documented wire format. It has not met the engine: see docs/engines.md.
"""

import asyncio
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

import aiohttp

from amf.engines.body import with_members
from amf.engines.engine import Capabilities, EngineError, EngineInfo, EngineRequest, LoadReport
from amf.engines.http import HttpEngine, max_model_tokens_of, models_of
from amf.engines.kvfeed import KvSource
from amf.engines.kvwire import KvEvent
from amf.engines.observer import Observer
from amf.engines.options import EngineOptions
from amf.engines.trtevents import EventReader
from amf.engines.trtload import last_iteration, page_load
from amf.engines.trtpoll import POLL_INTERVAL_S, EventPoll
from amf.engines.watched import WatchedEngine

PRIORITY_SPAN_S = 2.0**22  # 48 days have a priority of their own, half of them before the clock's zero
DEFAULT_BLOCK_TOKENS = 32
IDLE_AFTER_S = 2.0  # an engine that has ended no iteration for so long rests
_PRIORITISED = frozenset({"/v1/chat/completions", "/v1/completions"})
_EVENTS, _STATISTICS, _PAGE = "/kv_cache_events", "/metrics", "/prometheus/metrics"


def priority(urgency_s: float) -> float:
    """TensorRT-LLM's priority, 0..1, higher first, of an urgency in seconds, lower first: the engine's default of 0.5 at 0 s,
    linear, bounded 24 days to either side, NaN last. More than a quarter of a second is told apart even in single precision."""
    if math.isnan(urgency_s):
        return 0.0
    return max(0.0, min(1.0, 0.5 - urgency_s / PRIORITY_SPAN_S))


class TrtllmEngine(WatchedEngine):
    """One trtllm-serve. Satisfies `Engine`. Of several observations at a time the first alone has the events."""

    kind = "trtllm"

    def __init__(self, url: str, session: aiohttp.ClientSession, options: EngineOptions) -> None:
        super().__init__(url, session, options)
        self._events = EventPoll(partial(self.post, _EVENTS, {}), options.limits.discover_interval_s)
        self._block_tokens = 0
        self._kv_blocks = 0
        self._tiers: tuple[str, ...] = ()
        self._has_page = True
        self._last_load: LoadReport | None = None
        self._last_load_at_s = 0.0

    async def probe(self) -> EngineInfo:
        """Models from /v1/models; what else it tells, where it does. Raises EngineError without models."""
        self._has_page = True
        cards = models_of(await self.get_json("/v1/models"))
        version = await self.optional_json("/version")
        await self._measure()
        block_tokens = self._block_tokens or DEFAULT_BLOCK_TOKENS
        has_events = self._events.has_events or self.options.kv_events_endpoint is not None
        return EngineInfo(
            engine="trtllm",
            models=tuple(card["id"] for card in cards),
            version=version.get("version") if isinstance(version, dict) else None,
            block_tokens=block_tokens,
            kv_tokens=self._kv_blocks * block_tokens or None,
            max_model_tokens=max_model_tokens_of(cards),
            capabilities=Capabilities(
                kv_events=has_events,
                token_hashes=has_events,
                priority="higher-first" if self.options.priority else "none",
                token_prompts=True,
                tiers=self._tiers,
            ),
        )

    @staticmethod
    async def recognises(engine: HttpEngine) -> bool:
        """It signs its model cards, has its own route for events, or its own names on its page of metrics. Raises EngineError
        if nothing answers."""
        cards = models_of(await engine.get_json("/v1/models"))
        if any("tensorrt" in str(card.get("owned_by")).lower() for card in cards):
            return True
        with suppress(EngineError):
            routes = await engine.optional_json("/openapi.json")
            if isinstance(routes, dict) and _EVENTS in (routes.get("paths") or ()):
                return True
        return "\ntrtllm_" in "\n" + (await _page(engine) or "")

    async def load(self) -> LoadReport | None:
        """The engine's load by its newest iteration; None if there is no new one or it does not tell. Raises EngineError."""
        status, answer = await self.get(_STATISTICS)
        now_s = asyncio.get_running_loop().time()
        iteration = last_iteration(answer) if status == 200 else None
        if iteration is not None:
            self._last_load, self._last_load_at_s = iteration.load, now_s
            return self._last_load
        report = page_load(_text(status, answer)) or page_load(await self._page())
        if report is None and self._last_load is not None and now_s - self._last_load_at_s >= IDLE_AFTER_S:
            return replace(self._last_load, running=0, waiting=0)
        return report

    def _observer(self) -> Observer:
        limits = self.options.limits
        if self.options.kv_events_endpoint is not None or self._observers:
            return Observer(self.load, self.kv_sources, limits)
        reader = EventReader(self._block_tokens)

        async def poll() -> Sequence[KvEvent]:
            return [*reader.read(await self._events.take())]

        interval_s = min(POLL_INTERVAL_S, limits.observe_interval_s)
        return Observer(self.load, self.kv_sources, replace(limits, observe_interval_s=interval_s), poll)

    async def kv_sources(self) -> tuple[KvSource, ...]:
        """The publisher that the options name; without one the events are asked for."""
        if self.options.kv_events_endpoint is None:
            return ()
        return (KvSource(endpoint=self.options.kv_events_endpoint, replay_endpoint=self.options.kv_replay_endpoint),)

    def _attempt_body(self, request: EngineRequest) -> bytes:
        if not self.options.priority or request.path not in _PRIORITISED:
            return request.body
        return with_members(request.body, {"priority": priority(request.urgency_s)})

    async def _measure(self) -> None:
        """Learn the cache's dimensions and whether there are events, as far as it is told."""
        if self.options.kv_events_endpoint is None:
            seen = EventReader()
            for _ in seen.read(await self._events.peek()):
                pass
            if seen.level_blocks:
                self._kv_blocks = seen.level_blocks[0]
                self._tiers = ("dram",) if any(seen.level_blocks[1:]) else ()
        with suppress(EngineError):
            status, answer = await self.get(_STATISTICS)
            iteration = last_iteration(answer) if status == 200 else None
            if iteration is not None and (blocks := iteration.kv_cache_stats) is not None:
                self._block_tokens = blocks.tokens_per_block or self._block_tokens
                self._kv_blocks = self._kv_blocks or blocks.max_num_blocks

    async def _page(self) -> str:
        """Its Prometheus page; empty where it has none, for which it is not asked again before the next probe."""
        if not self._has_page:
            return ""
        page = await _page(self)
        self._has_page = page is not None
        return page or ""


async def _page(engine: HttpEngine) -> str | None:
    """Its Prometheus page; None where it has none or does not answer."""
    with suppress(EngineError):
        status, page = await engine.get(_PAGE)
        return _text(status, page) if status == 200 else None
    return None


def _text(status: int, body: bytes) -> str:
    return body.decode("utf-8", "replace") if status == 200 else ""

"""Hugging Face's Text Generation Inference: limits from /info, load from its metrics; no priorities, no events.

Its prefix cache lives inside the router and tells nobody what it holds, nor do its answers say how much of a prompt was
cached: warmth is predicted from the fabric's own calls, and nothing corrects it.
"""

import math
from typing import Any

import aiohttp

from amf.engines.engine import Capabilities, EngineError, EngineInfo, EngineRequest, LoadReport
from amf.engines.http import HttpEngine, models_of, positive
from amf.engines.metrics import SampleReader, ratio
from amf.engines.watched import WatchedEngine

_FAILED_GENERATION = 424  # its own status for a fault of its model server; the request may be as good as any
_QUEUED, _RUNNING, _RESERVED = "tgi_queue_size", "tgi_batch_current_size", "tgi_batch_current_max_tokens"
_CAPACITY = "tgi_batch_max_total_tokens"  # what its warm-up found room for
_LOAD = SampleReader((_QUEUED, _RUNNING, _RESERVED, _CAPACITY))


class TgiEngine(WatchedEngine):
    """One TGI server. Satisfies `Engine`."""

    kind = "tgi"

    @staticmethod
    async def recognises(engine: HttpEngine) -> bool:
        """Its /info names one model and how long a text may be. Raises EngineError if nothing answers."""
        info = await _info(engine)
        return isinstance(info.get("model_id"), str) and positive(info.get("max_total_tokens")) is not None

    async def probe(self) -> EngineInfo:
        """Models from /v1/models, which older releases lack; the rest from /info, and KV memory, which newer ones leave out
        there, from the metrics. Raises EngineError without models."""
        listing = await self.optional_json("/v1/models")
        info = await _info(self)
        if listing is None and "model_id" in info:
            listing = {"data": [{"id": info["model_id"]}]}
        running = [positive(info.get("max_batch_size")), positive(info.get("max_concurrent_requests"))]
        version = info.get("version")
        return EngineInfo(
            engine="tgi",
            models=tuple(card["id"] for card in models_of(listing)),
            version=version if isinstance(version, str) else None,
            kv_tokens=positive(info.get("max_batch_total_tokens")) or await self._capacity_tokens(),
            max_model_tokens=positive(info.get("max_total_tokens")),
            max_running=min((count for count in running if count is not None), default=None),
            capabilities=Capabilities(),
        )

    async def load(self) -> LoadReport | None:
        """The batch, the queue, and the share of memory that the batch has reserved; None if there are no metrics. A gauge
        that was never set is left out of the page and counts as 0. Raises EngineError."""
        told = await self._gauges()
        if not told:
            return None
        capacity_tokens = told.get(_CAPACITY, 0.0)
        used = told.get(_RESERVED, 0.0) / capacity_tokens if capacity_tokens > 0 else 0.0
        return LoadReport(
            running=round(told.get(_RUNNING, 0.0)),
            waiting=round(told.get(_QUEUED, 0.0)),
            kv_used_ratio=ratio(used),
        )

    async def send(self, session: aiohttp.ClientSession, request: EngineRequest) -> aiohttp.ClientResponse:
        """As any engine's, but a generation that failed inside TGI is the worker's fault: raises EngineError."""
        response = await super().send(session, request)
        if response.status == _FAILED_GENERATION:
            response.close()
            raise EngineError(f"the engine failed while generating (status {_FAILED_GENERATION})")
        return response

    async def _gauges(self) -> dict[str, float]:
        samples = _LOAD.read(await self.metrics_page())
        return {sample.name: sample.value for sample in samples if math.isfinite(sample.value)}

    async def _capacity_tokens(self) -> int | None:
        return positive(round((await self._gauges()).get(_CAPACITY, 0.0)))


async def _info(engine: HttpEngine) -> dict[str, Any]:
    info = await engine.optional_json("/info")
    return info if isinstance(info, dict) else {}

"""vLLM: load from its metrics, cache truth from its KV events, and the fabric's urgency in its priority header."""

import math
from collections.abc import Mapping
from typing import Any

from multidict import CIMultiDict

from amf.engines.engine import Capabilities, EngineInfo, EngineRequest, LoadReport
from amf.engines.headers import identifier
from amf.engines.http import HttpEngine, max_model_tokens_of, models_of, roots_of
from amf.engines.kvfeed import KvSource
from amf.engines.metrics import Sample, SampleReader, ratio
from amf.engines.release import release
from amf.engines.urgency import MAX_STEPS, steps
from amf.engines.watched import WatchedEngine

MAX_PRIORITY = MAX_STEPS  # urgency in ms: 24 days to either side

_NAMES_REQUESTS = (0, 32)  # the release in which KV events were seen to carry the X-Session-ID of who stored a block

_LOAD = SampleReader(
    (
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:gpu_cache_usage_perc",  # its name in older releases
    )
)
_CACHE = SampleReader(("vllm:cache_config_info",))


def priority(urgency_s: float) -> int:
    """vLLM's priority, lower first, of an urgency in seconds, lower first too: milliseconds, bounded, NaN last."""
    return steps(urgency_s, 1000)


class VllmEngine(WatchedEngine):
    """One vLLM server. Satisfies `Engine`."""

    kind = "vllm"

    async def probe(self) -> EngineInfo:
        """Models and limits from /v1/models; what else it tells, where it does. Raises EngineError without models."""
        cards = models_of(await self.get_json("/v1/models"))
        version = await self.optional_json("/version")
        version = version.get("version") if isinstance(version, dict) else None
        has_events = bool(await self.kv_sources())
        blocks = [sample.labels for sample in _CACHE.read(await self.metrics_page())]
        return EngineInfo(
            engine="vllm",
            models=tuple(card["id"] for card in cards),
            version=version,
            block_tokens=_whole(blocks[0].get("block_size")) if blocks else None,
            kv_tokens=sum(map(_kv_tokens, blocks)) or None,
            max_model_tokens=max_model_tokens_of(cards),
            capabilities=Capabilities(
                kv_events=has_events,
                token_hashes=has_events,
                attributed_events=has_events and release(version) >= _NAMES_REQUESTS,
                priority="lower-first" if self.options.priority else "none",
                token_prompts=True,
                tokenize=True,
            ),
            roots=roots_of(cards),
            kv_format=blocks[0].get("cache_dtype") if blocks else None,
            hash_algorithm=blocks[0].get("prefix_caching_hash_algo") if blocks else None,
        )

    @staticmethod
    async def recognises(engine: HttpEngine) -> bool:
        """It signs its model cards. Raises EngineError if nothing answers."""
        cards = models_of(await engine.get_json("/v1/models"))
        return any(card.get("owned_by") == "vllm" for card in cards) or "vllm:" in await engine.metrics_page()

    async def load(self) -> LoadReport | None:
        """The engine's load now, summed over its data-parallel ranks; None if it does not tell. Raises EngineError."""
        samples = list(_LOAD.read(await self.metrics_page()))
        used = [sample.value for sample in samples if sample.name.endswith("_usage_perc")]
        if not samples or not all(math.isfinite(sample.value) for sample in samples):
            return None
        return LoadReport(
            running=_total(samples, "vllm:num_requests_running"),
            waiting=_total(samples, "vllm:num_requests_waiting"),
            kv_used_ratio=ratio(sum(used) / len(used)) if used else 0.0,
        )

    async def kv_sources(self) -> tuple[KvSource, ...]:
        """The engine's event publishers, as options say or else as it says itself. Raises EngineError if it is away."""
        if self.options.kv_events_endpoint is not None:
            endpoint, replay = self.options.kv_events_endpoint, self.options.kv_replay_endpoint
            return (KvSource(endpoint=endpoint, replay_endpoint=replay),)
        ranks = await self.optional_json("/kv_event_sources")
        told = [self._source(rank) for rank in ranks.values()] if isinstance(ranks, dict) else []
        return tuple(dict.fromkeys(source for source in told if source is not None))

    def _attempt_headers(self, request: EngineRequest) -> CIMultiDict[str]:
        headers = super()._attempt_headers(request)
        if session_id := identifier(request.session_id):
            headers["X-Session-ID"] = session_id
        if self.options.priority:
            headers["X-Vllm-Priority"] = str(priority(request.urgency_s))
        return headers

    def _source(self, rank: Any) -> KvSource | None:
        """One entry of /kv_event_sources."""
        if not isinstance(rank, dict) or rank.get("enable_kv_cache_events") is False:
            return None
        endpoint = self._reachable(rank.get("endpoint"))
        if endpoint is None or rank.get("publisher", "zmq") != "zmq":
            return None
        replay = self.options.kv_replay_endpoint or self._reachable(rank.get("replay_endpoint"))
        return KvSource(endpoint=endpoint, replay_endpoint=replay)


def _total(samples: list[Sample], name: str) -> int:
    return round(sum(sample.value for sample in samples if sample.name == name))


def _whole(text: str | None) -> int | None:
    """A label's number, where it is one: engines also print "None" and "auto"."""
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


def _kv_tokens(labels: Mapping[str, str]) -> int:
    """What requests can use of one rank's KV cache, in tokens, 0 if it does not tell. vLLM counts one block that it keeps for
    itself."""
    blocks, block_tokens = _whole(labels.get("num_gpu_blocks")), _whole(labels.get("block_size")) or 0
    return max(0, (_whole(labels.get("kv_cache_size_tokens")) or (blocks or 0) * block_tokens) - block_tokens)

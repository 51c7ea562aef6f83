"""`GET /metrics` under vLLM's names. Counters and gauges are read from the worker when asked, so they cannot drift from it;
histograms are kept here. Seconds are real ones: at a time scale of 10 the emulator looks like a ten times faster engine.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from amf.emulator.ticket import Ticket
from amf.sim.worker import SimWorker

_FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10)
_REQUEST_S = (0.01, 0.03, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)


class Histogram:
    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def buckets(self) -> list[tuple[str, float]]:
        total, buckets = 0, []
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else str(float(bound)), float(total)))
        return buckets

    @property
    def sum(self) -> float:
        return self._sum


class Timings:
    """What finished requests took, and how they finished."""

    def __init__(self, time_scale: float) -> None:
        self._real = 1 / time_scale
        self.reasons = {"stop": 0, "length": 0, "abort": 0, "error": 0}
        self.histograms = {
            "time_to_first_token_seconds": Histogram(_FIRST_TOKEN_S),
            "inter_token_latency_seconds": Histogram(_TOKEN_S),
            "request_time_per_output_token_seconds": Histogram(_TOKEN_S),
            "e2e_request_latency_seconds": Histogram(_REQUEST_S),
            "request_queue_time_seconds": Histogram(_REQUEST_S),
            "request_prefill_time_seconds": Histogram(_REQUEST_S),
            "request_decode_time_seconds": Histogram(_REQUEST_S),
        }

    def finished(self, ticket: Ticket) -> None:
        """`ticket` is done. Its gaps between tokens are recorded as equally long."""
        if ticket.finished_s is None or ticket.started_s is None:
            return
        first_s = ticket.finished_s if ticket.first_token_s is None else ticket.first_token_s
        self.reasons["length" if ticket.finish_reason == "length" else "stop"] += 1
        self._add("time_to_first_token_seconds", first_s - ticket.submitted_s)
        self._add("e2e_request_latency_seconds", ticket.finished_s - ticket.submitted_s)
        self._add("request_queue_time_seconds", ticket.started_s - ticket.submitted_s)
        self._add("request_prefill_time_seconds", first_s - ticket.started_s)
        self._add("request_decode_time_seconds", ticket.finished_s - first_s)
        gaps = ticket.produced_tokens - 1
        if gaps > 0:
            self._add("inter_token_latency_seconds", (ticket.finished_s - first_s) / gaps, gaps)
            self._add("request_time_per_output_token_seconds", (ticket.finished_s - first_s) / gaps)

    def aborted(self) -> None:
        self.reasons["abort"] += 1

    def _add(self, name: str, worker_s: float, times: int = 1) -> None:
        self.histograms[name].add(worker_s * self._real, times)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheInfo:
    block_tokens: int
    blocks: int
    kv_format: str
    prefix_caching: bool

    def labels(self) -> Mapping[str, str]:
        """As vLLM does, it counts a block that requests cannot use."""
        blocks = self.blocks + 1
        return {
            "block_size": str(self.block_tokens),
            "cache_dtype": self.kv_format,
            "enable_prefix_caching": str(self.prefix_caching),
            "hash_block_size": str(self.block_tokens),
            "kv_cache_size_tokens": str(self.block_tokens * blocks),
            "num_gpu_blocks": str(blocks),
            "prefix_caching_hash_algo": "xxh3_64",
        }


class WorkerMetrics(Collector):
    """Everything `GET /metrics` says about one worker."""

    def __init__(self, worker: SimWorker, timings: Timings, model: str, cache: CacheInfo) -> None:
        self._worker, self._timings, self._cache = worker, timings, cache
        self._labels = {"engine": "0", "model_name": model}
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def render(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        stats = self._worker.stats
        yield self._gauge("num_requests_running", "Requests in execution batches.", stats.running)
        yield self._gauge("num_requests_waiting", "Requests waiting to be processed.", stats.waiting)
        yield self._gauge(
            "kv_cache_usage_perc", "Share of KV blocks held by live requests; 1 is all.", stats.kv_used_ratio
        )
        yield self._counter("prefix_cache_queries", "Tokens looked up in the prefix cache.", stats.query_tokens)
        yield self._counter("prefix_cache_hits", "Tokens found in the prefix cache.", stats.hit_tokens)
        yield self._counter("prompt_tokens", "Prompt tokens.", stats.prompt_tokens)
        yield self._counter("prompt_tokens_cached", "Prompt tokens that were cached.", stats.cached_tokens)
        yield self._counter("generation_tokens", "Generated tokens.", stats.output_tokens)
        yield self._counter("num_preemptions", "Preemptions.", stats.preemptions)
        computed = stats.prompt_tokens - stats.cached_tokens
        sources = {"local_compute": computed, "local_cache_hit": stats.cached_tokens, "external_kv_transfer": 0}
        yield self._counters("prompt_tokens_by_source", "Prompt tokens by source.", "source", sources)
        yield self._counters("request_success", "Finished requests.", "finished_reason", self._timings.reasons)
        labels = {"engine": "0", **self._cache.labels()}
        info = GaugeMetricFamily("vllm:cache_config_info", "The cache's configuration.", labels=list(labels))
        info.add_metric(list(labels.values()), 1)
        yield info
        for name, histogram in self._timings.histograms.items():
            family = HistogramMetricFamily(f"vllm:{name}", name.replace("_", " "), labels=list(self._labels))
            family.add_metric(list(self._labels.values()), histogram.buckets(), histogram.sum)
            yield family

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"vllm:{name}", text, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(f"vllm:{name}", text, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family

    def _counters(self, name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
        family = CounterMetricFamily(f"vllm:{name}", text, labels=[*self._labels, label])
        for key, value in values.items():
            family.add_metric([*self._labels.values(), key], value)
        return family

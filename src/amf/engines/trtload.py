"""TensorRT-LLM's load, from the statistics of its iterations or from a Prometheus page, whichever a release has.

The statistics are a JSON list of the iterations since it was asked last; only the newest says how things stand. Where a
release calls its numbers otherwise, its load is not known, and nothing else is lost.
"""

import math

import msgspec

from amf.engines.engine import LoadReport
from amf.engines.http import NOT_JSON
from amf.engines.metrics import SampleReader, ratio

_RUNNING, _WAITING, _USED = "trtllm_num_requests_running", "trtllm_num_requests_waiting", "trtllm_kv_cache_utilization"
_PAGE = SampleReader((_RUNNING, _WAITING, _USED))


class KvBlocks(msgspec.Struct, kw_only=True, rename="camel"):
    """The cache of one iteration."""

    max_num_blocks: int = 0
    used_num_blocks: int = 0
    tokens_per_block: int = 0


class Iteration(msgspec.Struct, kw_only=True, rename="camel"):
    num_active_requests: int
    num_queued_requests: int = 0
    kv_cache_stats: KvBlocks | None = None

    @property
    def load(self) -> LoadReport:
        blocks = self.kv_cache_stats or KvBlocks()
        return LoadReport(
            running=max(0, self.num_active_requests),
            waiting=max(0, self.num_queued_requests),
            kv_used_ratio=ratio(blocks.used_num_blocks / blocks.max_num_blocks if blocks.max_num_blocks else 0.0),
        )


def last_iteration(answer: bytes) -> Iteration | None:
    """The newest iteration of an answer; None if it has none, or none that can be read."""
    try:
        iterations = msgspec.json.decode(answer, type=list[msgspec.Raw])
        return msgspec.json.decode(iterations[-1], type=Iteration) if iterations else None
    except NOT_JSON:
        return None


def page_load(page: str) -> LoadReport | None:
    """The load of a Prometheus page, summed over its label sets; None if it does not tell."""
    values: dict[str, list[float]] = {}
    for sample in _PAGE.read(page):
        if not math.isfinite(sample.value):
            return None
        values.setdefault(sample.name, []).append(sample.value)
    if _RUNNING not in values:
        return None
    used = values.get(_USED, [0.0])
    return LoadReport(
        running=round(sum(values[_RUNNING])),
        waiting=round(sum(values.get(_WAITING, ()))),
        kv_used_ratio=ratio(sum(used) / len(used)),
    )

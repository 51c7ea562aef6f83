"""Families among the workers of a gateway."""

from collections.abc import Iterable, Mapping
from typing import Any

from amf.engines.family import Apart, Family, KvTraits, families

_UNKNOWN_KIND = ("openai", "auto")  # names of adapters, not of engines


def traits_of(worker: Mapping[str, Any]) -> KvTraits:
    """From a worker as `GET /amf/v1/workers` lists it."""
    engine = worker.get("engine")
    return KvTraits(
        worker=worker["name"],
        model=worker.get("pool") or "?",
        root=worker.get("root"),
        weights=worker.get("weights"),
        engine=None if engine in _UNKNOWN_KIND else engine,
        version=worker.get("version"),
        kv_format=worker.get("kv_format"),
        block_tokens=worker.get("block_tokens"),
        tensor_parallel=worker.get("tensor_parallel"),
        hash_algorithm=worker.get("hash_algorithm"),
    )


def families_of(workers: Iterable[Mapping[str, Any]]) -> tuple[tuple[Family, ...], tuple[Apart, ...]]:
    """Of the workers that have been reached; of others nothing is known."""
    return families(traits_of(worker) for worker in workers if worker.get("capabilities"))

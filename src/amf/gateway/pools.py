"""The models the gateway serves: names, aliases, and how each pool's prompts are turned into prefixes."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from amf.core.types import Prefix
from amf.gateway.exact import Encoder
from amf.gateway.prefixes import BytesPerToken
from amf.gateway.problem import Problem


class Inquirer(Protocol):
    """Who can find out where a prompt lies, and lets the fabric know."""

    async def look(self, pool: str, prefix: Prefix, tokens: Sequence[int]) -> bool:
        """Returns whether it took time."""
        ...


class Pool:
    """One model. `encoder` None means text mode: prefixes from hashed text, lengths estimated."""

    def __init__(self, name: str, encoder: Encoder | None) -> None:
        self.name = name
        self.encoder = encoder
        self.block_tokens = 16
        self.bytes_per_token = BytesPerToken()
        self.workers: dict[str, tuple[str, ...]] = {}  # worker -> the model names it answers to


class Pools:
    def __init__(self) -> None:
        self._pools: dict[str, Pool] = {}
        self._encoders: dict[str, Encoder] = {}
        self.inquirer: Inquirer | None = None

    def set_encoder(self, pool: str, encoder: Encoder) -> None:
        self._encoders[pool] = encoder

    def encoder(self, pool: str) -> Encoder | None:
        return self._encoders.get(pool)

    def enlist(self, worker: str, pool: str, models: Iterable[str], block_tokens: int) -> None:
        """A worker serves `pool` and answers to `models`."""
        entry = self._pools.setdefault(pool, Pool(pool, self._encoders.get(pool)))
        entry.workers[worker] = tuple(models)
        entry.block_tokens = block_tokens

    def delist(self, worker: str) -> None:
        for entry in self._pools.values():
            entry.workers.pop(worker, None)

    def models(self) -> list[str]:
        """Every model name that some worker answers to, sorted."""
        names = {name: None for pool in self._pools.values() for models in pool.workers.values() for name in models}
        return sorted(names)

    def resolve(self, model: str | None) -> Pool:
        """Raises Problem: 404 for a model nobody serves, 503 while no worker has ever answered, 400 without a name."""
        pool = self._pools.get(model or "")
        if pool is not None and pool.workers:
            return pool
        known = self.models()
        if not known:
            raise Problem(
                503, "no_worker", "No worker is up yet: retry shortly.", "service_unavailable_error", None, True, 1.0
            )
        if not model:
            message = f"`model` is missing: name one of {', '.join(known)}."
            raise Problem(400, "model_missing", message, param="model")
        for entry in self._pools.values():
            if any(model in models for models in entry.workers.values()):
                return entry
        message = f"The model `{model}` is not served here: use one of {', '.join(known)}."
        raise Problem(404, "model_not_found", message, param="model")

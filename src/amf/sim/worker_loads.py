"""Loading KV back from DRAM: what a request finds there, over a link that moves one load after another.

A load goes on while other requests compute. Its blocks can be found in HBM as soon as it is under way, and whoever finds
them waits until they have come; a load is not broken off when the request that asked for it leaves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from amf.core.cost import kv_bytes, transfer_s
from amf.sim.dram import DramTier
from amf.sim.messages import SimWorkerConfig
from amf.sim.worker_state import Live


@dataclass(frozen=True, slots=True)
class _Load:
    """Blocks `first` and further of a sequence, which have come at `end_s`."""

    key: int  # of block `first`
    first: int
    end_s: float


class Loads:
    def __init__(self, config: SimWorkerConfig) -> None:
        self.tier = DramTier(config.dram_tokens // config.block_tokens if config.prefix_caching else 0)
        self.waiting: dict[Live, float] = {}  # admitted requests and when all they found will have come
        self._config = config
        self._under_way: list[_Load] = []
        self._free_s = -inf

    @property
    def next_s(self) -> float:
        """When the first waiting request can go on; infinite if there is none."""
        return min(self.waiting.values(), default=inf)

    def fetch(self, keys: Sequence[int], found: int, end: int, now_s: float) -> tuple[int, float]:
        """Load what continues the first `found` blocks, which are in HBM, up to `end` at most. Returns up to where the
        sequence is in HBM then, and when all of it has come."""
        self._under_way = [load for load in self._under_way if load.end_s > now_s]
        ready_s = max((load.end_s for load in self._under_way if _part_of(load, keys, found)), default=now_s)
        depth = self.tier.match(keys, found, end)
        if found < depth:
            self.tier.load(keys, found, depth)
            size_bytes = kv_bytes(self._config.profile, (depth - found) * self._config.block_tokens)
            ready_s = max(now_s, self._free_s) + transfer_s(size_bytes, self._config.dram_bytes_per_s)
            self._free_s = ready_s
            self._under_way.append(_Load(keys[found], found, ready_s))
        return depth, ready_s

    def take_ready(self, now_s: float) -> Live | None:
        """The first request whose blocks have come; it waits no more."""
        if not self.waiting:
            return None
        live = min(self.waiting, key=self.waiting.__getitem__)
        if self.waiting[live] > now_s:
            return None
        del self.waiting[live]
        return live

    def clear(self) -> None:
        self.tier.clear()
        self._under_way.clear()


def _part_of(load: _Load, keys: Sequence[int], found: int) -> bool:
    return load.first < found and keys[load.first] == load.key

"""What goes into a simulated worker and what comes out of it. The worker is sans-IO: whoever owns the clock (the emulator's
wall clock or the simulator's heap) calls `submit`, `abort`, `next_event_s`, `advance` and reads these back. Nobody changes
them; they are not frozen, as every simulated call has several and those take a third of the time to make."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from amf.core.types import WorkerProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class SimWorkerConfig:
    """One simulated engine. Defaults follow vLLM's for a data-centre GPU, except the token budget (2,048 as measured best)."""

    profile: WorkerProfile
    kv_tokens: int
    block_tokens: int = 16
    max_running: int = 256
    token_budget: int = 2048  # tokens one iteration may process, prefill and decode together
    max_waiting: int | None = None  # queue limit; None: unbounded
    scheduling: Literal["fcfs", "priority"] = "fcfs"
    prefix_caching: bool = True
    dram_tokens: int = 0  # what KV memory forgets and this holds is loaded back, not computed again; 0: no such tier
    dram_bytes_per_s: float = 50e9  # of the link back from there


@dataclass(slots=True, kw_only=True)
class SimRequest:
    """A request as the engine sees it. `block_keys[i]` names block i's content and everything before it (chained), for
    every full block of prompt and planned output: at least (prompt_tokens + output_tokens) // block_tokens of them.
    `output_tokens` is the truth the scheduler cannot know. `priority`: lower is sooner (vLLM's polarity)."""

    request_id: str
    prompt_tokens: int
    output_tokens: int
    block_keys: Sequence[int]
    priority: int = 0


@dataclass(slots=True, kw_only=True)
class SimEvent:
    at_s: float


@dataclass(slots=True, kw_only=True)
class Started(SimEvent):
    """First scheduled. `cached_tokens` is what the prefix cache gave, as the engine would report it in `usage`."""

    request_id: str
    cached_tokens: int


@dataclass(slots=True, kw_only=True)
class FirstTokenOut(SimEvent):
    request_id: str


@dataclass(slots=True, kw_only=True)
class Finished(SimEvent):
    request_id: str
    cached_tokens: int
    output_tokens: int


@dataclass(slots=True, kw_only=True)
class Preempted(SimEvent):
    """Lost its blocks for want of memory; will be recomputed from the waiting queue."""

    request_id: str


@dataclass(slots=True, kw_only=True)
class BlocksStored(SimEvent):
    """Blocks became full and findable, in chain order. `first_block` is the index of keys[0] in the request's chain and
    `parent_key` the key before it (None at the start of the chain)."""

    request_id: str
    keys: tuple[int, ...]
    parent_key: int | None
    first_block: int


@dataclass(slots=True, kw_only=True)
class BlocksEvicted(SimEvent):
    """One physical copy of each of these blocks was reused for something else."""

    keys: tuple[int, ...]


@dataclass(slots=True, kw_only=True)
class BlocksOffloaded(SimEvent):
    """HBM has no copy of these blocks any more; they are in DRAM now."""

    keys: tuple[int, ...]


@dataclass(slots=True, kw_only=True)
class BlocksDropped(SimEvent):
    """These blocks are in DRAM no more: loaded back, computed anew, or forgotten."""

    keys: tuple[int, ...]


@dataclass(slots=True, kw_only=True)
class CacheCleared(SimEvent):
    pass

"""The border to the engines: what the gateway needs from one worker, whatever engine runs there.

An adapter owns the wire: HTTP to the engine, its metrics, its KV events, the polarity of its priority field. It knows
nothing of policies. It never reads or logs prompts; response bytes pass through it untouched.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol


class EngineError(Exception):
    """The worker's fault: unreachable, refused, timed out, stalled, or sent what is not HTTP. Retryable elsewhere."""


class EngineBusy(EngineError):
    """The worker is well but takes no more calls now: its queue is full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What this engine offers; what it lacks degrades by a stated rule (docs/engines.md)."""

    kv_events: bool = False
    token_hashes: bool = False  # its events name the tokens of each block, so that prompts can be matched exactly
    attributed_events: bool = False  # its events name the request that stored a block
    priority: Literal["none", "lower-first", "higher-first"] = "none"
    token_prompts: bool = False
    tokenize: bool = False
    retention: bool = False  # it can be told how long to keep a prefix
    release: bool = False  # it can be told that a session is over
    tiers: tuple[str, ...] = ()  # below HBM, that it is seen to use
    lora: bool = False  # it serves adapters beside its model
    ranks: int = 1  # data-parallel ranks, each with a cache of its own, that a call can be sent to


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What a probe learned. None: the engine does not say. `roots`: where each model's weights were loaded from."""

    engine: str
    models: tuple[str, ...]
    version: str | None = None
    block_tokens: int | None = None
    kv_tokens: int | None = None
    max_model_tokens: int | None = None
    max_running: int | None = None  # calls that it serves at once; more wait inside it, or are refused
    capabilities: Capabilities = Capabilities()
    roots: Mapping[str, str] = field(default_factory=dict)
    kv_format: str | None = None
    hash_algorithm: str | None = None  # by which it names blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """One attempt. `body` is forwarded byte for byte, with levers behind it where the engine takes them there; `urgency_s`
    (latest start on the fabric's clock, lower is sooner) becomes the engine's priority."""

    request_id: str
    path: str  # "/v1/chat/completions"
    body: bytes
    headers: Mapping[str, str]
    urgency_s: float = 0.0
    session_id: str = ""  # what the engine is told the request belongs to, and its events name


class Upstream(Protocol):
    """An open response. Leaving its context before the end closes the connection, which engines treat as a cancel."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    def chunks(self) -> AsyncIterator[bytes]:
        """Body bytes as they arrive. Raises EngineError if the connection breaks, ends early or stalls."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    running: int
    waiting: int
    kv_used_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BlocksStored:
    """Engine truth: blocks stored in chain order after `parent_hash` (None: chain start). `token_ids` covers all of them."""

    block_hashes: tuple[int | bytes, ...]
    parent_hash: int | bytes | None
    token_ids: tuple[int, ...]
    block_tokens: int
    medium: str = "GPU"
    cache_salt: str = ""
    session_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlocksRemoved:
    block_hashes: tuple[int | bytes, ...]
    medium: str = "GPU"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheCleared:
    """The cache was reset, the engine restarted, or events were lost beyond replay: forget what was believed."""

    reason: str


Observation = LoadReport | BlocksStored | BlocksRemoved | CacheCleared


class Engine(Protocol):
    """One worker's adapter. All methods may be called concurrently; `close` ends them."""

    url: str

    async def probe(self) -> EngineInfo:
        """Ask the engine what it is. Raises EngineError if it does not answer."""
        ...

    async def healthy(self) -> bool: ...

    def generate(self, request: EngineRequest) -> AbstractAsyncContextManager[Upstream]:
        """Send one attempt. Entering raises EngineError if no response head arrives."""
        ...

    def observe(self) -> AsyncIterator[Observation]:
        """Load and cache truth for as long as the worker lives. Survives reconnects; yields CacheCleared on a gap."""
        ...

    async def close(self) -> None: ...

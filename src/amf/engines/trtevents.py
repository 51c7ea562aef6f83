"""TensorRT-LLM's KV events, from the JSON list that it hands out to whoever asks, each event once.

Blocks form a tree of which the engine holds each node at most once a rank, in HBM or in host memory; a block moves between
these (`updated`) and is removed without a word of where it lay. So the reader keeps where every block is: a move becomes a
store there and a removal here, and what is told twice counts once.

Events are numbered for the life of the engine, each rank's for themselves. A jump ahead means that the engine's buffer ran
over, or that somebody else asked too; a number that is not ahead, or a cache created while blocks are held, means a
restart. Both become CacheCleared.

Left out, since a prompt's tokens do not name them: blocks of sliding windows (of the windows that the engine keeps apart only
the largest counts), the last block of a prompt while it is not full, and blocks that also depend on an image or an adapter,
with all that follows them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from amf.engines.engine import BlocksRemoved, BlocksStored, CacheCleared
from amf.engines.http import NOT_JSON
from amf.engines.kvwire import KvEvent

MAX_BLOCKS = 2_000_000  # of which the place is kept; what would exceed them is left out
_MEDIA = {0: "GPU", 1: "CPU"}
_LOWER = "DISK"  # a level below these


class _Envelope(msgspec.Struct, kw_only=True):
    event_id: int
    data: msgspec.Raw
    window_size: int | None = None
    attention_dp_rank: int | None = None


class _Head(msgspec.Struct, kw_only=True):
    type: str
    window_size: int | None = None
    attention_dp_rank: int | None = None


class _Created(msgspec.Struct, kw_only=True):
    num_blocks_per_cache_level: tuple[int, ...]


class _Token(msgspec.Struct, kw_only=True, gc=False):
    token_id: int
    token_extra_id: int | None = None


class _Block(msgspec.Struct, kw_only=True):
    """The last three: where a release tells one of these, the tokens are not all that the block depends on."""

    block_hash: int
    tokens: list[_Token]
    cache_level: int = 0
    mm_keys: Any = None
    lora_id: Any = None
    cache_salt: Any = None


class _Stored(msgspec.Struct, kw_only=True):
    blocks: list[_Block]
    parent_hash: int | None = None


class _Removed(msgspec.Struct, kw_only=True):
    block_hashes: tuple[int, ...]


class _Change(msgspec.Struct, kw_only=True):
    new_value: int


class _Updated(msgspec.Struct, kw_only=True):
    block_hash: int
    cache_level: _Change | None = None


@dataclass(slots=True)
class _Run:
    """Blocks that are new in one place, in a row."""

    parent: int | None
    medium: str
    hashes: list[int]
    tokens: list[int]


class EventReader:
    """From the events of one engine, through its restarts, to what the fabric is told. `block_tokens`: of a full block, 0 if
    not known before; the largest met from then on."""

    def __init__(self, block_tokens: int = 0) -> None:
        self.block_tokens = block_tokens
        self._last: dict[int, int] = {}  # rank -> the number of its last event
        self._levels: dict[tuple[int, int], int] = {}  # (rank, block hash) -> where it lies
        self._window = 0  # the largest met
        self._created: dict[int, tuple[int, ...]] = {}  # rank -> blocks by level, of that window

    @property
    def level_blocks(self) -> tuple[int, ...]:
        """The cache's size in blocks by level, over all ranks; empty if the engine was not seen to make it."""
        depth = max(map(len, self._created.values()), default=0)
        return tuple(
            sum(levels[level] for levels in self._created.values() if level < len(levels)) for level in range(depth)
        )

    def read(self, events: Iterable[msgspec.Raw]) -> Iterator[KvEvent]:
        """What these events say, in order. What is not an event is skipped: the next number shows that one is missing."""
        for raw in events:
            try:
                event = msgspec.json.decode(raw, type=_Envelope)
                head = msgspec.json.decode(event.data, type=_Head)
            except NOT_JSON:
                continue
            rank = event.attention_dp_rank or head.attention_dp_rank or 0
            window = event.window_size or head.window_size or 0
            yield from self._numbered(rank, event.event_id)
            if window >= self._window:
                yield from self._widened(window)
                yield from self._event(rank, head.type, event.data)

    def _numbered(self, rank: int, number: int) -> Iterator[KvEvent]:
        last = self._last.get(rank)
        if last is not None and number <= last:
            self._last.clear()
            self._created.clear()
            self._window = 0
            yield self._cleared("the engine restarted")
        elif last is not None and number > last + 1:
            yield self._cleared(f"events lost: {number - last - 1}")
        self._last[rank] = number

    def _widened(self, window: int) -> Iterator[KvEvent]:
        if window > self._window and self._levels:
            yield self._cleared("the blocks told so far were those of a sliding window")
        self._window = window

    def _cleared(self, reason: str) -> CacheCleared:
        self._levels.clear()
        return CacheCleared(reason=reason)

    def _event(self, rank: int, kind: str, data: msgspec.Raw) -> Iterator[KvEvent]:
        try:
            match kind:
                case "created":
                    self._created[rank] = msgspec.json.decode(data, type=_Created).num_blocks_per_cache_level
                    if any(holder == rank for holder, _ in self._levels):
                        yield self._cleared("the engine made its cache anew")
                case "stored":
                    yield from self._stored(rank, msgspec.json.decode(data, type=_Stored))
                case "removed":
                    yield from self._removed(rank, msgspec.json.decode(data, type=_Removed).block_hashes)
                case "updated":
                    updated = msgspec.json.decode(data, type=_Updated)
                    if updated.cache_level is not None:
                        yield from self._moved(rank, updated.block_hash, updated.cache_level.new_value)
        except NOT_JSON:
            if kind in ("removed", "updated") and self._levels:  # a store that cannot be read is only not believed
                yield self._cleared("events lost: one could not be read")

    def _stored(self, rank: int, stored: _Stored) -> Iterator[KvEvent]:
        run: _Run | None = None
        parent = stored.parent_hash or None
        for block in stored.blocks:
            self.block_tokens = max(self.block_tokens, len(block.tokens))
            if not self._is_indexed(block):
                break
            known = self._levels.get((rank, block.block_hash))
            medium = _medium(block.cache_level)
            if run is not None and (known is not None or medium != run.medium):
                yield self._told(run)
                run = None
            if known is not None:
                yield from self._moved(rank, block.block_hash, block.cache_level)
            else:
                self._levels[rank, block.block_hash] = block.cache_level
                run = run or _Run(parent, medium, [], [])
                run.hashes.append(block.block_hash)
                run.tokens += [token.token_id for token in block.tokens]
            parent = block.block_hash
        if run is not None:
            yield self._told(run)

    def _is_indexed(self, block: _Block) -> bool:
        """Whether it is full, its tokens are all that it depends on, and there is room to remember it."""
        return (
            0 < len(block.tokens) == self.block_tokens
            and not (block.mm_keys or block.lora_id or block.cache_salt)
            and not any(token.token_extra_id for token in block.tokens)
            and len(self._levels) < MAX_BLOCKS
        )

    def _told(self, run: _Run) -> BlocksStored:
        return BlocksStored(
            block_hashes=tuple(run.hashes),
            parent_hash=run.parent,
            token_ids=tuple(run.tokens),
            block_tokens=self.block_tokens,
            medium=run.medium,
        )

    def _moved(self, rank: int, block_hash: int, level: int) -> Iterator[KvEvent]:
        """It is here now and no longer there. The store comes first: while a block lies nowhere it has no name."""
        before = self._levels.get((rank, block_hash))
        if before is None:
            return
        self._levels[rank, block_hash] = level
        if (medium := _medium(level)) != _medium(before):
            yield BlocksStored(
                block_hashes=(block_hash,), parent_hash=None, token_ids=(), block_tokens=0, medium=medium
            )
            yield BlocksRemoved(block_hashes=(block_hash,), medium=_medium(before))

    def _removed(self, rank: int, block_hashes: Iterable[int]) -> Iterator[KvEvent]:
        gone: dict[str, list[int]] = {}
        for block_hash in block_hashes:
            level = self._levels.pop((rank, block_hash), None)
            if level is not None:
                gone.setdefault(_medium(level), []).append(block_hash)
        for medium, hashes in gone.items():
            yield BlocksRemoved(block_hashes=tuple(hashes), medium=medium)


def _medium(level: int) -> str:
    return _MEDIA.get(level, _LOWER)

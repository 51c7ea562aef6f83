"""vLLM's KV event batches, from their bytes: msgpack `[time, events, data-parallel rank]`, spoken by SGLang as well.

An event is a map with a "type" in releases from 0.24 on, and an array that begins with its type before. Unknown fields,
unknown events and missing optional fields are normal.

Left out, since a prompt's tokens do not name them: blocks of KV groups other than full attention (a sliding window's
blocks come and go on their own), blocks of a LoRA adapter without a name, blocks of token pairs (SGLang with EAGLE
speculation), and blocks that also depend on an image or an embedding, with all that follows them. Their removals are told
by hash alone and meet no name in the block index. An adapter's blocks are kept apart by its name, which is part of their
salt as it is of a prompt's (`keys.py:namespace`).
"""

from collections.abc import Iterator, Sequence
from typing import Any, cast
from urllib.parse import unquote

import msgspec

from amf.engines.engine import BlocksRemoved, BlocksStored, CacheCleared
from amf.engines.keys import namespace

KvEvent = BlocksStored | BlocksRemoved | CacheCleared
BlockHash = int | bytes


class MalformedBatch(Exception):
    """The payload is not a batch of KV events."""


class _Stored(msgspec.Struct, kw_only=True):
    """Fields in the order of the array encoding, then those that only the map encoding has."""

    block_hashes: tuple[BlockHash, ...]
    parent_block_hash: BlockHash | None
    token_ids: tuple[int | tuple[int, int], ...]
    block_size: int
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: list[Any] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    cache_salt: str | None = None
    session_id: str | None = None


class _Removed(msgspec.Struct, kw_only=True):
    block_hashes: tuple[BlockHash, ...]
    medium: str | None = None
    group_idx: int | None = None


class BatchDecoder:
    """Decodes the batches of one publisher. Remembers which KV groups are not indexed, as removals do not repeat it."""

    def __init__(self) -> None:
        self._skipped_groups: set[int] = set()

    def decode(self, payload: bytes) -> list[KvEvent]:
        """The events of one batch, in order. Raises MalformedBatch."""
        try:
            _, events, *_ = msgspec.msgpack.decode(payload)
            return [event for raw in events for event in self._event(raw)]
        except (msgspec.MsgspecError, ValueError, TypeError, LookupError) as error:
            raise MalformedBatch(type(error).__name__) from None

    def _event(self, raw: Any) -> Iterator[KvEvent]:
        kind = raw["type"] if isinstance(raw, dict) else raw[0]
        if kind == "AllBlocksCleared":
            yield CacheCleared(reason="the engine reset its cache")
        elif kind == "BlockStored":
            stored = msgspec.convert(_fields(raw, _Stored), _Stored)
            if self._is_indexed(stored) and (event := _translate(stored)).block_hashes:
                yield event
        elif kind == "BlockRemoved":
            removed = msgspec.convert(_fields(raw, _Removed), _Removed)
            if removed.group_idx not in self._skipped_groups:
                yield BlocksRemoved(block_hashes=removed.block_hashes, medium=removed.medium or "GPU")

    def _is_indexed(self, stored: _Stored) -> bool:
        if stored.kv_cache_spec_kind not in (None, "full_attention"):
            if stored.group_idx is not None:
                self._skipped_groups.add(stored.group_idx)
            return False
        are_pairs = bool(stored.token_ids) and isinstance(stored.token_ids[0], tuple)
        return (stored.lora_name is not None or stored.lora_id is None) and not are_pairs


def _fields(raw: Any, struct: type[msgspec.Struct]) -> dict[str, Any]:
    return raw if isinstance(raw, dict) else dict(zip(struct.__struct_fields__, raw[1:], strict=False))


def _translate(stored: _Stored) -> BlocksStored:
    extras = stored.extra_keys or []
    is_first = stored.parent_block_hash is None
    adapter = stored.lora_name or ""
    salt = (stored.cache_salt or _salt(extras[:1], adapter)) if is_first else ""
    plain = _plain_blocks(extras, len(stored.block_hashes), salt, adapter)
    token_ids = cast(tuple[int, ...], stored.token_ids)
    return BlocksStored(
        block_hashes=stored.block_hashes[:plain],
        parent_hash=stored.parent_block_hash,
        token_ids=token_ids if plain == len(stored.block_hashes) else token_ids[: plain * stored.block_size],
        block_tokens=stored.block_size,
        medium=stored.medium or "GPU",
        cache_salt=namespace(salt, adapter) if is_first else "",
        session_id=unquote(stored.session_id or ""),
    )


def _salt(first_block_extras: Sequence[Any], adapter: str) -> str:
    """The cache salt: the bare string among a first block's extra keys that is not the adapter's name."""
    found = (item for extra in first_block_extras for item in _items(extra) if isinstance(item, str))
    return next((item for item in found if item != adapter), "")


def _plain_blocks(extras: Sequence[Any], blocks: int, salt: str, adapter: str) -> int:
    """How many leading blocks depend on nothing but their tokens, the adapter and, at the chain's start, the salt."""
    for position, extra in enumerate(extras[:blocks]):
        allowed = [adapter, *([salt] if position == 0 and salt else [])]
        if any(item not in allowed for item in _items(extra)):
            return position
    return blocks


def _items(extra: Any) -> list[Any]:
    return [extra] if isinstance(extra, str | bytes) else list(extra or ())

"""Translates one engine's block names into the fabric's keys.

Engines name blocks by hashes of their own, which differ by version, algorithm and seed. Nothing here recomputes them: a
stored block tells its tokens and its parent, which is enough to chain our key (`keys.py`) after the parent's; a removed
block tells its hash alone, which is looked up. A block whose parent is unknown (stored before we listened) cannot be
named and is left out until the engine stores its chain again: the fabric then believes less than is true, never more.
"""

from dataclasses import dataclass

from amf.engines.engine import BlocksRemoved, BlocksStored
from amf.engines.keys import root_key, token_keys


@dataclass(slots=True)
class _Named:
    key: int
    copies: int  # the engine may hold a block several times, and in several tiers; each is removed for itself


class BlockIndex:
    """One worker's engine hash -> our key. Holds at most `max_blocks` names; what would exceed them is left out.

    `orphans` counts stored blocks that could not be named, `unknown` removed blocks that had no name.
    """

    def __init__(self, max_blocks: int = 2_000_000) -> None:
        self._max_blocks = max_blocks
        self._named: dict[int | bytes, _Named] = {}
        self.orphans = 0
        self.unknown = 0

    def __len__(self) -> int:
        return len(self._named)

    def stored(self, event: BlocksStored) -> tuple[int, ...]:
        """Our keys of the blocks just stored, in chain order; empty if they cannot be named."""
        keys = self._keys(event)
        room = self._max_blocks - len(self._named)
        if len(keys) != len(event.block_hashes) or len(keys) > room:
            self.orphans += len(event.block_hashes)
            return ()
        for block_hash, key in zip(event.block_hashes, keys, strict=True):
            named = self._named.get(block_hash)
            if named is None:
                self._named[block_hash] = _Named(key, 1)
            else:
                named.copies += 1
        return keys

    def removed(self, event: BlocksRemoved) -> tuple[int, ...]:
        """Our keys of the blocks just removed, one for each copy; those without a name are left out."""
        keys = []
        for block_hash in event.block_hashes:
            named = self._named.get(block_hash)
            if named is None:
                self.unknown += 1
                continue
            keys.append(named.key)
            named.copies -= 1
            if not named.copies:
                del self._named[block_hash]
        return tuple(keys)

    def clear(self) -> None:
        """Forget every name: the engine's cache was reset, or its events were lost. The counts stay."""
        self._named.clear()

    def _keys(self, event: BlocksStored) -> tuple[int, ...]:
        if not event.token_ids:  # offload tiers name blocks that the engine told of before, by hash alone
            known = [self._named.get(block_hash) for block_hash in event.block_hashes]
            return tuple(named.key for named in known if named is not None)
        if len(event.token_ids) != event.block_tokens * len(event.block_hashes):
            return ()
        parent = None if event.parent_hash is None else self._named.get(event.parent_hash)
        if parent is None and event.parent_hash is not None:
            return ()
        start = root_key(event.cache_salt) if parent is None else parent.key
        try:
            return token_keys(event.token_ids, event.block_tokens, start)
        except ValueError:  # what the engine calls tokens are none
            return ()

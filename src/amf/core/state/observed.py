"""Observed warmth: what the workers of one pool say they hold (engine KV events), block by block.

Each key maps to a bit mask of workers per tier. Engines may store one block twice, so copies are counted; a block is warm
while at least one copy remains. What a worker holds is nearly always closed under "prefix of" (engines evict tails first),
so the depth of a match is found by bisection on the masks, all workers at once; the answer is spot-checked and falls
back to a walk when an interior block is missing.
"""

from collections.abc import Callable, Sequence

from amf.core.types import Prefix, Tier

Holders = Callable[[int, int], int]
_MAX_GROUPS = 256


class Observed:
    def __init__(self) -> None:
        self._masks: dict[Tier, dict[int, int]] = {tier: {} for tier in Tier}
        self._copies: dict[tuple[Tier, int, int], int] = {}  # (tier, bit, key) -> copies beyond the first
        self._bits: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._groups: dict[int, tuple[str, ...]] = {}  # mask -> names
        self._last: tuple[Prefix, list[tuple[tuple[int, int], int]]] | None = None
        self._blocks: dict[int, int] = {}  # bit -> distinct (tier, key) held

    def add_worker(self, worker: str) -> None:
        self.clear_worker(worker)
        self._groups.clear()
        if worker not in self._bits:
            used = sum(self._bits.values())
            bit = 1
            while used & bit:
                bit <<= 1
            self._bits[worker] = bit
            self._names[bit] = worker

    def drop_worker(self, worker: str) -> None:
        self.clear_worker(worker)
        self._groups.clear()
        self._names.pop(self._bits.pop(worker, 0), None)

    def clear_worker(self, worker: str) -> None:
        bit = self._bits.get(worker, 0)
        self._last = None
        if not bit:
            return
        for masks in self._masks.values():
            for key in [key for key, mask in masks.items() if mask & bit]:
                self._unset(masks, key, bit)
        assert not self._blocks.get(bit)
        self._copies = {entry: count for entry, count in self._copies.items() if entry[1] != bit}

    def stored(self, worker: str, keys: tuple[int, ...], tier: Tier) -> None:
        bit = self._bits.get(worker, 0)
        if not bit:
            return
        self._last = None
        masks = self._masks[tier]
        for key in keys:
            mask = masks.get(key, 0)
            if mask & bit:
                entry = (tier, bit, key)
                self._copies[entry] = self._copies.get(entry, 0) + 1
            else:
                masks[key] = mask | bit
                self._blocks[bit] = self._blocks.get(bit, 0) + 1

    def evicted(self, worker: str, keys: tuple[int, ...], tier: Tier) -> None:
        bit = self._bits.get(worker, 0)
        self._last = None
        masks = self._masks[tier]
        for key in keys:
            if not masks.get(key, 0) & bit:
                continue
            entry = (tier, bit, key)
            copies = self._copies.get(entry, 0)
            if copies > 1:
                self._copies[entry] = copies - 1
            elif copies:
                del self._copies[entry]
            else:
                self._unset(masks, key, bit)

    def hits(self, prefix: Prefix) -> list[tuple[tuple[int, int], tuple[str, ...]]]:
        """Groups of workers by what they hold: ((tokens warm in any tier, tokens of these in HBM), names). Workers with none
        are absent."""
        return [(tokens, self._named(mask)) for tokens, mask in self._look(prefix)]

    def hit(self, worker: str, prefix: Prefix) -> tuple[int, int]:
        """The same for one worker; (0, 0) if it holds none."""
        bit = self._bits.get(worker, 0)
        return next((tokens for tokens, mask in self._look(prefix) if mask & bit), (0, 0))

    def blocks(self, worker: str) -> int:
        """Distinct blocks the worker holds, over all tiers."""
        return self._blocks.get(self._bits.get(worker, 0), 0)

    def _unset(self, masks: dict[int, int], key: int, bit: int) -> None:
        self._blocks[bit] -= 1
        mask = masks[key] & ~bit
        if mask:
            masks[key] = mask
        else:
            del masks[key]

    def _look(self, prefix: Prefix) -> list[tuple[tuple[int, int], int]]:
        """`hits` with masks for names. The last answer is remembered until anything changes: one decision asks twice."""
        if self._last is not None and self._last[0] is prefix:
            return self._last[1]
        found: list[tuple[tuple[int, int], int]] = []
        if prefix.keys and any(self._blocks.values()):
            fast = _depths(prefix.keys, self._holders(False))
            if self._has_lower():
                found = [
                    ((prefix.tokens_at(depth), prefix.tokens_at(shallow)), both)
                    for depth, mask in _depths(prefix.keys, self._holders(True))
                    for shallow, other in (*fast, (0, ~sum(mask for _, mask in fast)))
                    if (both := mask & other)
                ]
            else:
                found = [((prefix.tokens_at(depth),) * 2, mask) for depth, mask in fast]
        self._last = (prefix, found)
        return found

    def _has_lower(self) -> bool:
        return any(masks for tier, masks in self._masks.items() if tier is not Tier.HBM)

    def _holders(self, lower: bool) -> Holders:
        """(key, 0) -> the workers that hold the key in HBM, or with `lower` in any tier."""
        fast = self._masks[Tier.HBM]
        if not lower:
            return fast.get
        tables = [masks for masks in self._masks.values() if masks]

        def in_any(key: int, none: int) -> int:
            mask = none
            for masks in tables:
                mask |= masks.get(key, none)
            return mask

        return in_any

    def _named(self, mask: int) -> tuple[str, ...]:
        """The workers of a mask. Remembered: a system prompt is held by the same ones again and again."""
        names = self._groups.get(mask)
        if names is None:
            if len(self._groups) >= _MAX_GROUPS:
                self._groups.clear()
            names = self._groups[mask] = tuple(name for bit, name in self._names.items() if mask & bit)
        return names


def _depths(keys: Sequence[int], holders: Holders) -> list[tuple[int, int]]:
    """(number of leading keys held, the workers that hold just these), for all that hold the first."""
    everyone = holders(keys[0], 0)
    depths: list[tuple[int, int]] = []
    spans = [(1, len(keys), everyone)] if everyone else []
    while spans:
        low, high, mask = spans.pop()  # every worker in `mask` holds keys[:low] and at most keys[:high]
        if low == high:
            depths += _checked(keys, low, mask, holders)
            continue
        middle = (low + high + 1) // 2
        deeper = holders(keys[middle - 1], 0) & mask
        if deeper:
            spans.append((middle, high, deeper))
        if mask ^ deeper:
            spans.append((low, middle - 1, mask ^ deeper))
    return depths


def _checked(keys: Sequence[int], depth: int, mask: int, holders: Holders) -> list[tuple[int, int]]:
    """The same, with the true depth of those that lack a block in between."""
    closed = mask
    for at in (depth // 4, depth // 2, depth * 3 // 4, depth - 1):
        closed &= holders(keys[at], 0)
    found, broken = [(depth, closed)] if closed else [], mask ^ closed
    while broken:
        bit = broken & -broken
        found.append((next(i for i, key in enumerate(keys) if not holders(key, 0) & bit), bit))
        broken ^= bit
    return found

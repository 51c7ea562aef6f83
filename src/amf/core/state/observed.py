"""Observed warmth: what the workers of one pool say they hold (engine KV events), block by block.

Each key maps to a bit mask of workers per tier. Engines may store one block twice, so copies are counted; a block is warm
while at least one copy remains. What a worker holds is nearly always closed under "prefix of" (engines evict tails first),
so the depth of a match is found by bisection on the masks, all workers at once; the answer is spot-checked and falls
back to a walk when an interior block is missing.
"""

from collections.abc import Iterator

from amf.core.types import Prefix, Tier


class Observed:
    def __init__(self) -> None:
        self._masks: dict[Tier, dict[int, int]] = {tier: {} for tier in Tier}
        self._copies: dict[tuple[Tier, int, int], int] = {}  # (tier, bit, key) -> copies beyond the first
        self._bits: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._blocks: dict[int, int] = {}  # bit -> distinct (tier, key) held

    def add_worker(self, worker: str) -> None:
        self.clear_worker(worker)
        if worker not in self._bits:
            used = sum(self._bits.values())
            bit = 1
            while used & bit:
                bit <<= 1
            self._bits[worker] = bit
            self._names[bit] = worker

    def drop_worker(self, worker: str) -> None:
        self.clear_worker(worker)
        self._names.pop(self._bits.pop(worker, 0), None)

    def clear_worker(self, worker: str) -> None:
        bit = self._bits.get(worker, 0)
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

    def hits(self, prefix: Prefix) -> dict[str, tuple[int, int]]:
        """Worker -> (tokens warm in any tier, tokens of these in HBM). Workers with none are absent."""
        if not prefix.keys or not any(self._blocks.values()):
            return {}
        fast = self._depths(prefix.keys, (Tier.HBM,))
        lower = [tier for tier in Tier if tier is not Tier.HBM and self._masks[tier]]
        if not lower:
            same = {depth: (prefix.tokens_at(depth),) * 2 for depth, _ in fast}
            return {name: same[depth] for depth, mask in fast for name in self._named(mask)}
        deep = self._depths(prefix.keys, (Tier.HBM, *lower))
        shallow = {name: depth for depth, mask in fast for name in self._named(mask)}
        return {
            name: (prefix.tokens_at(depth), prefix.tokens_at(shallow.get(name, 0)))
            for depth, mask in deep
            for name in self._named(mask)
        }

    def hit(self, worker: str, prefix: Prefix) -> tuple[int, int]:
        """The same for one worker; (0, 0) if it holds none."""
        bit = self._bits.get(worker, 0)
        if not prefix.keys or not self._blocks.get(bit):
            return 0, 0
        lower = [tier for tier in Tier if tier is not Tier.HBM and self._masks[tier]]
        fast = self._depth(prefix.keys, bit, (Tier.HBM,))
        deep = self._depth(prefix.keys, bit, (Tier.HBM, *lower)) if lower else fast
        return prefix.tokens_at(deep), prefix.tokens_at(fast)

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

    def _holders(self, key: int, tiers: tuple[Tier, ...]) -> int:
        mask = 0
        for tier in tiers:
            mask |= self._masks[tier].get(key, 0)
        return mask

    def _named(self, mask: int) -> Iterator[str]:
        while mask:
            bit = mask & -mask
            yield self._names[bit]
            mask ^= bit

    def _depths(self, keys: tuple[int, ...], tiers: tuple[Tier, ...]) -> list[tuple[int, int]]:
        """(number of leading keys held, the workers that hold just these), for all that hold the first."""
        everyone = self._holders(keys[0], tiers)
        depths: list[tuple[int, int]] = []
        spans = [(1, len(keys), everyone)] if everyone else []
        while spans:
            low, high, mask = spans.pop()  # every worker in `mask` holds keys[:low] and at most keys[:high]
            if low == high:
                depths += self._checked(keys, low, mask, tiers)
                continue
            middle = (low + high + 1) // 2
            deeper = self._holders(keys[middle - 1], tiers) & mask
            if deeper:
                spans.append((middle, high, deeper))
            if mask ^ deeper:
                spans.append((low, middle - 1, mask ^ deeper))
        return depths

    def _depth(self, keys: tuple[int, ...], bit: int, tiers: tuple[Tier, ...]) -> int:
        """`_depths` of one worker."""
        low, high = 0, len(keys)
        while low < high:
            middle = (low + high + 1) // 2 if low else 1
            if self._holders(keys[middle - 1], tiers) & bit:
                low = middle
            else:
                high = middle - 1
        return self._checked(keys, low, bit, tiers)[0][0] if low else 0

    def _checked(self, keys: tuple[int, ...], depth: int, mask: int, tiers: tuple[Tier, ...]) -> list[tuple[int, int]]:
        """The same, with the true depth of those that lack a block in between."""
        closed = mask
        for at in {depth // 4: None, depth // 2: None, depth * 3 // 4: None, depth - 1: None}:
            closed &= self._holders(keys[at], tiers)
        found, broken = [(depth, closed)] if closed else [], mask ^ closed
        while broken:
            bit = broken & -broken
            found.append((next(i for i, key in enumerate(keys) if not self._holders(key, tiers) & bit), bit))
            broken ^= bit
        return found

"""A worker's KV memory: fixed-size blocks, shared by prefix and reused in vLLM's order.

A block is *held* (its count of holders is above zero) or *free*. A free block that still has a key can be found
again, until it is reused. The free list is therefore two lists: `_blank`, blocks without a key, reused first, newest
first; and `_idle`, keyed blocks, least recently released first. A request's blocks are released from the tail, so the
end of a sequence is forgotten before its beginning.

Two requests can fill two blocks with the same content (a fully cached prompt still recomputes its last block). Each
block keeps the key; `_first` names the copy that lookups return and `_more` the others, oldest first. A key is
findable while a copy is left.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence


class BlockPool:
    """`blocks` physical blocks. Raises ValueError when asked for more than are free: callers look at `free`
    before."""

    def __init__(self, blocks: int) -> None:
        if blocks < 1:
            raise ValueError(f"a block pool needs at least one block, not {blocks}")
        self.total = blocks
        self.releases = 0  # grows whenever a block may have become free
        self._holders = [0] * blocks
        self._key: list[int | None] = [None] * blocks
        self._blank = list(range(blocks - 1, -1, -1))  # next to reuse last
        self._idle: OrderedDict[int, None] = OrderedDict()  # next to reuse first
        self._first: dict[int, int] = {}
        self._more: dict[int, list[int]] = {}

    def __contains__(self, key: int) -> bool:
        return key in self._first

    @property
    def free(self) -> int:
        return len(self._blank) + len(self._idle)

    @property
    def used(self) -> int:
        return self.total - self.free

    @property
    def cached_free(self) -> int:
        """Free blocks that can still be found."""
        return len(self._idle)

    def match(self, keys: Iterable[int]) -> list[int]:
        """Blocks of the longest findable prefix of `keys`."""
        return list(iter(map(self._first.get, keys).__next__, None))

    def count_free(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` are on the free list."""
        return sum(map(self._idle.__contains__, blocks))

    def hold(self, blocks: Iterable[int]) -> None:
        """One more holder for each of `blocks` (found by `match`)."""
        holders, idle = self._holders, self._idle
        for block in blocks:
            count = holders[block]
            if not count:
                del idle[block]
            holders[block] = count + 1

    def allocate(self, count: int) -> tuple[list[int], list[int]]:
        """`count` blocks with one holder each, and the keys forgotten to make room."""
        if count > self.free:
            raise ValueError(f"asked for {count} blocks, only {self.free} of {self.total} are free")
        blank = self._blank
        from_blank = min(count, len(blank))
        blocks = blank[len(blank) - from_blank :][::-1]
        del blank[len(blank) - from_blank :]
        evicted = [self._forget_oldest(blocks) for _ in range(count - from_blank)]
        for block in blocks:
            self._holders[block] = 1
        return blocks, evicted

    def store(self, blocks: Sequence[int], keys: Sequence[int]) -> None:
        """Make held `blocks` findable under `keys`."""
        for block, key in zip(blocks, keys, strict=True):
            self._key[block] = key
            if self._first.setdefault(key, block) != block:
                self._more.setdefault(key, []).append(block)

    def release(self, blocks: Sequence[int]) -> None:
        """One holder fewer for each block of a sequence, given from its beginning."""
        holders, keys, idle = self._holders, self._key, self._idle
        blank: list[int] = []
        for block in reversed(blocks):
            count = holders[block] - 1
            holders[block] = count
            if not count:
                if keys[block] is None:
                    blank.append(block)
                else:
                    idle[block] = None
        self._blank.extend(reversed(blank))
        self.releases += 1

    def lose(self, count: int) -> int:
        """Forget up to `count` free keyed blocks, least recently released first; says how many."""
        lost: list[int] = []
        for _ in range(min(count, len(self._idle))):
            self._forget_oldest(lost)
        self._blank[:0] = reversed(lost)
        return len(lost)

    def clear(self) -> bool:
        """Forget every key. False, and nothing changes, while any block is held."""
        if self.used:
            return False
        self._blank[:0] = reversed(self._idle)
        self._idle.clear()
        self._first.clear()
        self._more.clear()
        self._key = [None] * self.total
        return True

    def contents(self) -> Counter[int]:
        """Copies of every findable key."""
        return Counter(key for key in self._key if key is not None)

    def check(self, held: Iterable[Sequence[int]]) -> None:
        """Raise AssertionError unless holders are exactly the `held` sequences and every list agrees with every
        other."""
        assert Counter(block for blocks in held for block in blocks) == Counter(
            {block: count for block, count in enumerate(self._holders) if count}
        ), "holders differ from the sequences that hold blocks"
        free = [*self._blank, *self._idle]
        assert sorted(free) == [block for block, count in enumerate(self._holders) if not count], "free list is wrong"
        assert all(self._key[block] is None for block in self._blank), "a blank block has a key"
        assert all(self._key[block] is not None for block in self._idle), "an idle block has no key"
        copies: dict[int, list[int]] = {key: [block, *self._more.get(key, [])] for key, block in self._first.items()}
        assert self._more.keys() <= self._first.keys() and all(self._more.values()), "stray copies"
        by_key: dict[int, list[int]] = {}
        for block, key in enumerate(self._key):
            if key is not None:
                by_key.setdefault(key, []).append(block)
        assert by_key == {key: sorted(blocks) for key, blocks in copies.items()}, "index differs from the blocks' keys"

    def _forget_oldest(self, into: list[int]) -> int:
        """Move the oldest idle block, now blank, to `into`; returns the key it had."""
        block, _ = self._idle.popitem(last=False)
        key = self._key[block]
        assert key is not None
        self._key[block] = None
        into.append(block)
        others = self._more.get(key)
        if others is None:
            del self._first[key]
        else:
            if self._first[key] == block:
                self._first[key] = others.pop(0)
            else:
                others.remove(block)
            if not others:
                del self._more[key]
        return key

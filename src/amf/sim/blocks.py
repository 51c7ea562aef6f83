"""A worker's KV memory: fixed-size blocks, shared by prefix and reused in vLLM's order.

A block is *held* (its count of holders is above zero) or *free*. A free block that still has a key can be found
again, until it is reused. The free list is therefore two lists: `_blank`, blocks without a key, reused first, newest
first; and `_idle`, keyed blocks, least recently released first. A request's blocks are released from the tail, so the
end of a sequence is forgotten before its beginning.

Two requests can fill two blocks with the same content (a fully cached prompt still recomputes its last block). Each
block keeps the key; `_first` names the copy that lookups return and `_more` the others, oldest first. A key is
findable while a copy is left.

A prompt has thousands of blocks and a call touches all of them, so sequences are arrays and what a block has is kept in
columns. Only blocks that gain or lose a key cost a dictionary access each. A lookup starts from a *trail*, the blocks of
a sequence that was here before and has some key in common: as far as the keys agree, the blocks still have them (their
`_lives` are unchanged) and are first copies, the trail is the answer, and the dictionary is asked from there on.
"""

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

Blocks = NDArray[np.int64]
NO_BLOCKS: Blocks = np.empty(0, np.int64)


class BlockPool:
    """`blocks` physical blocks. Raises ValueError when asked for more than are free: callers look at `free`
    before."""

    def __init__(self, blocks: int) -> None:
        if blocks < 1:
            raise ValueError(f"a block pool needs at least one block, not {blocks}")
        self.total = blocks
        self.releases = 0  # grows whenever a request that found no room may find some
        self._holders = np.zeros(blocks, np.int64)
        self._key: NDArray[Any] = np.full(blocks, None, object)  # the last one it had
        self._keyed = np.zeros(blocks, bool)
        self._lives = np.zeros(blocks, np.int64)  # how many keys the block has had and lost
        self._is_first = np.zeros(blocks, bool)
        self._trail: NDArray[Any] = np.full(blocks, None, object)  # of the last sequence remembered with the block
        self._blank = list(range(blocks - 1, -1, -1))  # next to reuse last
        self._idle = _Queue(blocks)
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

    def match(self, keys: Sequence[int], most: int | None = None) -> Blocks:
        """Blocks of the longest findable prefix of `keys` (chained: each says what was before), `most` at most."""
        most = len(keys) if most is None else most
        known = self._known(keys, most)
        rest = list(iter(map(self._first.get, islice(keys, len(known), most)).__next__, None))
        return np.concatenate((known, np.array(rest, np.int64))) if rest else known

    def remember(self, blocks: Blocks, keys: Sequence[int]) -> None:
        """Held `blocks`, stored under `keys`, are worth trying first when such keys are looked up."""
        self._trail[blocks] = _Trail(keys, blocks, self._lives[blocks])

    def count_free(self, blocks: Blocks) -> int:
        """How many of `blocks` are on the free list."""
        return len(blocks) - int(np.count_nonzero(self._holders[blocks]))

    def hold(self, blocks: Blocks) -> None:
        """One more holder for each of `blocks` (found by `match`)."""
        self._idle.remove(blocks[self._holders[blocks] == 0])
        self._holders[blocks] += 1

    def allocate(self, count: int) -> tuple[Blocks, list[int]]:
        """`count` blocks with one holder each, and the keys forgotten to make room."""
        if count > self.free:
            raise ValueError(f"asked for {count} blocks, only {self.free} of {self.total} are free")
        blank = self._blank
        from_blank = min(count, len(blank))
        blocks = np.array(blank[len(blank) - from_blank :][::-1], np.int64)
        del blank[len(blank) - from_blank :]
        evicted: list[int] = []
        if from_blank < count:
            oldest, evicted = self._forget_oldest(count - from_blank)
            blocks = np.concatenate((blocks, oldest))
        self._holders[blocks] = 1
        return blocks, evicted

    def store(self, blocks: Blocks, keys: Sequence[int]) -> None:
        """Make held `blocks` findable under `keys`, which are distinct."""
        self._key[blocks] = np.fromiter(keys, object, len(keys))
        self._keyed[blocks] = True
        if self._first.keys().isdisjoint(keys):
            self._first.update(zip(keys, blocks.tolist(), strict=True))
            self._is_first[blocks] = True
            return
        for block, key in zip(blocks.tolist(), keys, strict=True):
            if self._first.setdefault(key, block) == block:
                self._is_first[block] = True
            else:
                self._more.setdefault(key, []).append(block)

    def release(self, blocks: Blocks) -> None:
        """One holder fewer for each block of a sequence, given from its beginning."""
        left = self._holders[blocks] - 1
        self._holders[blocks] = left
        freed = blocks[left == 0]
        keyed = self._keyed[freed]
        self._idle.extend(freed[keyed][::-1])
        self._blank.extend(freed[~keyed].tolist())
        self.releases += 1

    def lose(self, count: int) -> int:
        """Forget up to `count` free keyed blocks, least recently released first; says how many."""
        lost, keys = self._forget_oldest(min(count, len(self._idle)))
        self._blank[:0] = lost[::-1].tolist()
        self.releases += 1  # with fewer blocks to take over, a request may need fewer of the free ones
        return len(keys)

    def clear(self) -> bool:
        """Forget every key. False, and nothing changes, while any block is held."""
        if self.used:
            return False
        self.lose(self.total)
        return True

    def contents(self) -> Counter[int]:
        """Copies of every findable key."""
        return Counter(self._key[self._keyed].tolist())

    def check(self, held: Iterable[Blocks]) -> None:
        """Raise AssertionError unless holders are exactly the `held` sequences and every list agrees with every
        other."""
        counts = np.bincount(np.concatenate((NO_BLOCKS, *held)), minlength=self.total)
        assert (counts == self._holders).all(), "holders differ from the sequences that hold blocks"
        idle = self._idle.items().tolist()
        free = sorted([*self._blank, *idle])
        assert free == np.flatnonzero(self._holders == 0).tolist(), "free list is wrong"
        assert not self._keyed[self._blank].any(), "a blank block has a key"
        assert self._keyed[idle].all(), "an idle block has no key"
        copies: dict[int, list[int]] = {key: [block, *self._more.get(key, [])] for key, block in self._first.items()}
        assert self._more.keys() <= self._first.keys() and all(self._more.values()), "stray copies"
        by_key: dict[int, list[int]] = {}
        for block, key in enumerate(self._key.tolist()):
            if self._keyed[block]:
                by_key.setdefault(key, []).append(block)
        assert by_key == {key: sorted(blocks) for key, blocks in copies.items()}, "index differs from the blocks' keys"
        assert np.flatnonzero(self._is_first).tolist() == sorted(self._first.values()), (
            "first copies are marked wrongly"
        )

    def _known(self, keys: Sequence[int], most: int) -> Blocks:
        """A findable prefix of `keys` by way of a trail, as long as it goes."""
        depth = most
        while depth and keys[depth - 1] not in self._first:
            depth = depth * 3 // 4
        trail: _Trail | None = self._trail.item(self._first[keys[depth - 1]]) if depth else None
        if trail is None:
            return NO_BLOCKS
        blocks = trail.blocks[: trail.agreeing(keys, most)]
        good = (self._lives[blocks] == trail.lives[: len(blocks)]) & self._is_first[blocks]
        return blocks if good.all() else blocks[: int(good.argmin())]

    def _forget_oldest(self, count: int) -> tuple[Blocks, list[int]]:
        """Take the `count` oldest idle blocks, now blank, and the keys they had."""
        blocks = self._idle.popleft(count)
        keys: list[int] = self._key[blocks].tolist()
        self._keyed[blocks] = False
        self._lives[blocks] += 1
        self._trail[blocks] = None
        if not self._more or self._more.keys().isdisjoint(keys):
            deque(map(self._first.__delitem__, keys), maxlen=0)
        else:
            for block, key in zip(blocks.tolist(), keys, strict=True):
                self._forget_copy(block, key)
        self._is_first[blocks] = False
        return blocks, keys

    def _forget_copy(self, block: int, key: int) -> None:
        others = self._more.get(key)
        if others is None:
            del self._first[key]
            return
        if self._first[key] == block:
            self._first[key] = others.pop(0)
            self._is_first[self._first[key]] = True
        else:
            others.remove(block)
        if not others:
            del self._more[key]


class _Trail:
    """Blocks of a sequence, their keys, and the lives they were in."""

    __slots__ = ("blocks", "keys", "lives")

    def __init__(self, keys: Sequence[int], blocks: Blocks, lives: NDArray[np.int64]) -> None:
        self.keys, self.blocks, self.lives = keys, blocks, lives

    def agreeing(self, keys: Sequence[int], most: int) -> int:
        """How many leading keys are the same: where two chained keys are the same, so are all before them."""
        depths = range(min(len(self.blocks), most))
        return bisect_left(depths, True, key=lambda depth: self.keys[depth] != keys[depth])


class _Queue:
    """Distinct block numbers in order; any can be removed. A log in which an entry counts while `_place` points to
    it."""

    def __init__(self, blocks: int) -> None:
        self._log = np.zeros(4 * blocks, np.int64)
        self._place = np.full(blocks, -1, np.int64)  # block -> position in the log; -1: not in the queue
        self._head = self._tail = self._count = 0

    def __len__(self) -> int:
        return self._count

    def items(self) -> Blocks:
        entries = self._log[self._head : self._tail]
        items: Blocks = entries[self._place[entries] == np.arange(self._head, self._tail)]
        return items

    def extend(self, blocks: Blocks) -> None:
        if self._tail + len(blocks) > len(self._log):
            items = self.items()
            self._head, self._tail = 0, len(items)
            self._log[: self._tail] = items
            self._place[items] = np.arange(self._tail)
        end = self._tail + len(blocks)
        self._log[self._tail : end] = blocks
        self._place[blocks] = np.arange(self._tail, end)
        self._tail = end
        self._count += len(blocks)

    def remove(self, blocks: Blocks) -> None:
        self._place[blocks] = -1
        self._count -= len(blocks)

    def popleft(self, count: int) -> Blocks:
        """The first `count`, which must be there."""
        found: list[Blocks] = [NO_BLOCKS]
        missing = count
        while missing:
            stop = min(self._tail, self._head + missing + 16)
            entries = self._log[self._head : stop]
            here = np.flatnonzero(self._place[entries] == np.arange(self._head, stop))[:missing]
            found.append(entries[here])
            missing -= len(here)
            self._head = stop if missing else self._head + int(here[-1]) + 1
        blocks = np.concatenate(found)
        self.remove(blocks)
        return blocks

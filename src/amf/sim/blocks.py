"""A worker's KV memory: fixed-size blocks, shared by prefix and reused in vLLM's order.

A block is *held* (its count of holders is above zero) or *free*. A free block that still has a key can be found again,
until it is reused. Blank blocks, which have no key, are reused first; then keyed ones, least recently released first. A
request's blocks are released from the tail, so the end of a sequence is forgotten before its beginning.

A prompt has thousands of blocks, but its blocks share their fate in long *stretches*: of one sequence, neighbours in
depth, with the same holders or side by side in the order of reuse. So the pool keeps stretches, and a call costs as
many steps as its sequence has of them, seldom more than three:

- Which physical block holds what is nobody's concern; blank ones are only counted.
- The index knows the first key of each stretch. Keys are chained (each says what was before), so how far two sequences
  agree is found by bisection, and a sequence that leaves a stretch midway goes on in one that begins there.
- Forgetting takes a stretch's deep end off. Holding a part of a stretch cuts it: of a free one the deep rest keeps its
  place in the order; of a held one the rest is linked, so that tables that go further still find it (`BlockTable`).
- What is released together, and is whole, becomes one stretch again.

What can be found is closed under "prefix of": whoever holds or releases a block does the same to a copy of each before
it. Hence if one key of a sequence is unknown, so are all after it.

Two requests can fill two blocks with the same content (a fully cached prompt still recomputes its last block). Lookups
return the oldest copy; the others, rare, are stretches of one block each in `_copies`, oldest first, and take its place
block by block as it is forgotten.
"""

from bisect import bisect_left
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from amf.sim.dram import DramTier


@dataclass(slots=True, eq=False)
class Stretch:
    """Blocks `lo` to `hi` of a sequence. `keys` begins with that of block `base`."""

    keys: Sequence[int]
    lo: int
    hi: int
    base: int = 0
    holders: int = 1
    is_first: bool = True  # the copy that lookups find
    rest: "Stretch | None" = None  # what was cut off its end while it was held

    def __len__(self) -> int:
        return self.hi - self.lo

    @property
    def first_key(self) -> int:
        return self.keys[self.lo - self.base]

    def agrees_until(self, keys: Sequence[int], most: int) -> int:
        """Up to where `keys`, whose block `lo` is this one's, are the same; `most` at most."""
        own, base, end = self.keys, self.base, min(self.hi, most)
        if keys[end - 1] == own[end - 1 - base]:
            return end
        return bisect_left(range(end), True, lo=self.lo + 1, key=lambda depth: keys[depth] != own[depth - base])


Parts = list[tuple[Stretch, int]]  # stretches of one sequence, each as far as it belongs to it


@dataclass(slots=True)
class BlockTable:
    """The blocks of one request: `keyed` leading ones that were stored or found, and `blank` ones after them. A part
    that was cut since goes on in the `rest` of its stretch."""

    keys: Sequence[int] = ()
    parts: Parts = field(default_factory=list)
    keyed: int = 0
    blank: int = 0

    def __len__(self) -> int:
        return self.keyed + self.blank

    def stretches(self) -> Iterator[Stretch]:
        for stretch, end in self.parts:
            yield stretch
            while stretch.hi < end:
                assert stretch.rest is not None
                stretch = stretch.rest
                yield stretch


class BlockPool:
    """`blocks` physical blocks. Raises ValueError when asked for more than are free: callers look at `free`
    before. What it forgets to make room goes to `lower`, if there is such a tier."""

    def __init__(self, blocks: int, lower: DramTier | None = None) -> None:
        if blocks < 1:
            raise ValueError(f"a block pool needs at least one block, not {blocks}")
        self.total = blocks
        self.lower = lower
        self.releases = 0  # grows whenever a request that found no room may find some
        self.cached_free = 0  # free blocks that can still be found
        self._blank = blocks
        self._idle: OrderedDict[Stretch, None] = OrderedDict()  # free ones, next to forget first
        self._index: dict[int, Stretch] = {}
        self._copies: dict[int, list[Stretch]] = {}

    @property
    def free(self) -> int:
        return self._blank + self.cached_free

    @property
    def used(self) -> int:
        return self.total - self._blank - self.cached_free

    def match(self, keys: Sequence[int], most: int | None = None) -> Parts:
        """The longest findable prefix of `keys`, `most` blocks at most."""
        limit = len(keys) if most is None else most
        depth, parts = 0, []
        while depth < limit and (stretch := self._index.get(keys[depth])) is not None:
            depth = stretch.agrees_until(keys, limit)
            parts.append((stretch, depth))
        return parts

    def has(self, keys: Sequence[int], depth: int) -> bool:
        """Whether the first `depth` keys can be found."""
        return depth_of(self.match(keys, depth)) == depth

    def hold(self, parts: Parts, keys: Sequence[int]) -> BlockTable:
        """One more holder for what `match` has just found of `keys`."""
        held: Parts = []
        for stretch, end in parts:
            if end < stretch.hi:
                stretch = self._cut(stretch, end)
            elif not stretch.holders:
                del self._idle[stretch]
            if not stretch.holders:
                self.cached_free -= len(stretch)
            stretch.holders += 1
            held.append((stretch, end))
        return BlockTable(keys, held, depth_of(held))

    def take(self, table: BlockTable, count: int) -> list[int]:
        """`count` more blocks for a request. Returns the keys forgotten to make room."""
        if count > self.free:
            raise ValueError(f"asked for {count} blocks, only {self.free} of {self.total} are free")
        blank = min(count, self._blank)
        self._blank -= blank
        table.blank += count
        return self._forget_oldest(count - blank, self.lower) if blank < count else []

    def store(self, table: BlockTable, end: int) -> None:
        """Make the blocks before `end`, which a request holds, findable under its keys."""
        keys, first = table.keys, table.keyed
        table.blank -= end - first
        table.keyed = end
        last = self._last(table, first)
        if last is None or last.is_first:
            is_known = keys[first] in self._index
        else:
            is_known = self.has(keys, first + 1)
        if is_known:
            first = self._store_copies(table, first, end)
        elif last is not None and last.is_first and last.holders == 1:
            last.keys, last.base, last.hi, last.rest = keys, 0, end, None
            table.parts[-1] = (table.parts[-1][0], end)
            return
        if first < end:
            stretch = self._index[keys[first]] = Stretch(keys, first, end)
            table.parts.append((stretch, end))

    def release(self, table: BlockTable) -> None:
        """One holder fewer for each block of a request, which has none from now on."""
        freed: list[Stretch] = []
        for stretch in list(table.stretches()):
            stretch.holders -= 1
            if stretch.holders:
                continue
            stretch.rest = None
            self.cached_free += len(stretch)
            before = freed[-1] if freed else None
            if before is not None and before.is_first and stretch.is_first and before.hi == stretch.lo:
                del self._index[stretch.first_key]
                before.keys, before.base, before.hi = table.keys, 0, stretch.hi
            else:
                freed.append(stretch)
        for stretch in reversed(freed):
            self._idle[stretch] = None
            if 2 * len(stretch) < len(stretch.keys):  # a small part does not keep the keys of a long sequence alive
                stretch.keys = stretch.keys[stretch.lo - stretch.base : stretch.hi - stretch.base]
                stretch.base = stretch.lo
        self._blank += table.blank
        table.parts, table.keyed, table.blank = [], 0, 0
        self.releases += 1

    def lose(self, count: int) -> int:
        """Forget up to `count` free keyed blocks, least recently released first; says how many."""
        lost = len(self._forget_oldest(min(count, self.cached_free)))
        self._blank += lost
        self.releases += 1  # with fewer blocks to take over, a request may need fewer of the free ones
        return lost

    def clear(self) -> bool:
        """Forget every key. False, and nothing changes, while any block is held."""
        if self.used:
            return False
        self.lose(self.total)
        return True

    def contents(self) -> Counter[int]:
        """Copies of every findable key."""
        copies = [stretch for group in self._copies.values() for stretch in group]
        return Counter(key for stretch in (*self._index.values(), *copies) for key in _own_keys(stretch))

    def check(self, tables: Iterable[BlockTable]) -> None:
        """Raise AssertionError unless holders are exactly `tables` and all the books agree."""
        copies = [stretch for group in self._copies.values() for stretch in group]
        known, tables = {*self._index.values(), *copies}, list(tables)
        held = Counter(stretch for table in tables for stretch in table.stretches())
        assert held.keys() <= known, "a held stretch is not in the books"
        assert all(stretch.holders == held[stretch] for stretch in known), "holders differ from the tables that hold"
        assert self._idle.keys() == {stretch for stretch in known if not stretch.holders}, "the free list is wrong"
        assert self.cached_free == sum(map(len, self._idle)), "free blocks are miscounted"
        in_use = sum(map(len, known)) + sum(table.blank for table in tables)
        assert self._blank + in_use == self.total, "blocks are lost"
        assert all(key == stretch.first_key and stretch.is_first for key, stretch in self._index.items()), "stray entry"
        firsts = Counter(key for stretch in self._index.values() for key in _own_keys(stretch))
        assert set(firsts.values()) <= {1}, "a key has two first copies"
        assert self._copies.keys() <= firsts.keys() and all(self._copies.values()), "stray copies"
        for key, group in self._copies.items():
            assert all((_own_keys(each), each.is_first) == ([key], False) for each in group), "a wrong copy"
        for table in tables:
            ends = [(stretch.lo, stretch.hi) for stretch in table.stretches()]
            joints = [0, *(hi for _, hi in ends)]
            assert [lo for lo, _ in ends] == joints[:-1] and joints[-1] == table.keyed, "a table has gaps"

    def _last(self, table: BlockTable, end: int) -> Stretch | None:
        """The stretch of a table that ends at block `end`."""
        if not table.parts:
            return None
        last = table.parts[-1][0]
        while last.hi < end:
            assert last.rest is not None
            last = last.rest
        return last

    def _cut(self, stretch: Stretch, depth: int) -> Stretch:
        """Cut in two at `depth`. Returns the upper part; of a free stretch it is no longer in the order of reuse."""
        keys, base = stretch.keys, stretch.base
        if not stretch.holders:
            upper = self._index[stretch.first_key] = Stretch(keys, stretch.lo, depth, base, 0)
            self._index[keys[depth - base]] = stretch
            stretch.lo = depth
            return upper
        rest = Stretch(keys, depth, stretch.hi, base, stretch.holders, rest=stretch.rest)
        self._index[keys[depth - base]] = stretch.rest = rest
        stretch.hi = depth
        return stretch

    def _store_copies(self, table: BlockTable, first: int, end: int) -> int:
        """Store what others have already. Returns where new keys begin."""
        known = depth_of(self.match(table.keys, end))
        for depth in range(first, known):
            copy = Stretch(table.keys, depth, depth + 1, is_first=False)
            self._copies.setdefault(table.keys[depth], []).append(copy)
            table.parts.append((copy, depth + 1))
        return known

    def _forget_oldest(self, count: int, lower: DramTier | None = None) -> list[int]:
        """Forget the `count` oldest idle blocks, which go to the `lower` tier. Returns the keys they had."""
        self.cached_free -= count
        forgotten: list[int] = []
        while count:
            stretch = next(iter(self._idle))
            taken = min(count, len(stretch))
            end = stretch.hi - stretch.base
            keys = stretch.keys[end - taken : end][::-1]
            stretch.hi -= taken
            count -= taken
            if stretch.hi == stretch.lo:
                del self._idle[stretch]
                if stretch.is_first:
                    del self._index[keys[-1]]
            stale = 0 if not self._copies else len(self._copies.keys() & keys) if stretch.is_first else taken
            if self._copies:
                self._forget_copies(stretch, keys)
            forgotten += keys
            if lower is not None:
                lower.put(list(keys), stale)
        return forgotten

    def _forget_copies(self, stretch: Stretch, keys: Sequence[int]) -> None:
        """`stretch` has lost `keys`. What it was the first copy of has another first copy, if there is one."""
        for key in self._copies.keys() & keys:
            copies = self._copies[key]
            if stretch.is_first:
                self._index[key] = copies.pop(0)
                self._index[key].is_first = True
            else:
                copies.remove(stretch)
            if not copies:
                del self._copies[key]


def depth_of(parts: Parts) -> int:
    """How many blocks they are."""
    return parts[-1][1] if parts else 0


def count_free(parts: Parts) -> int:
    """How many of these blocks are free."""
    return sum(end - stretch.lo for stretch, end in parts if not stretch.holders)


def _own_keys(stretch: Stretch) -> list[int]:
    return list(stretch.keys[stretch.lo - stretch.base : stretch.hi - stretch.base])

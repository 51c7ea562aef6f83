"""The binary buddy system: blocks of 2^k pages at multiples of 2^k, halved until they fit, joined with their other half.

Joining costs no search, since a block's other half (its buddy) lies at its number with one bit turned. The price is rounding:
a reservation takes a whole block, and what it did not ask for is `wasted_pages` until it is given back. D. E. Knuth, The Art
of Computer Programming, volume 1, section 2.5; the space need not be a power of two.

A part that is given back cuts its block: a half without a live page is free at once, the other one keeps on. Cost: `reserve`
and `free` O(log total) halvings or joins each, plus one search of as many levels for the block of a page.
"""

from dataclasses import dataclass

from amf.sim.pages.ranges import Range


@dataclass(slots=True)
class _Block:
    """A reserved block of 2^order pages; those from `low` to `high` are handed out."""

    order: int
    low: int
    high: int


class Buddy:
    def __init__(self, total: int) -> None:
        if total < 1:
            raise ValueError(f"a page space needs at least one page, not {total}")
        self.total = total
        self._free: list[dict[int, None]] = [{} for _ in range(total.bit_length())]  # by order: starts, oldest first
        self._taken: dict[int, _Block] = {}
        self._free_pages = total
        self._wasted = 0
        start = 0
        for order in reversed(range(total.bit_length())):
            if total >> order & 1:
                self._free[order][start] = None
                start += 1 << order

    @property
    def free_pages(self) -> int:
        return self._free_pages

    @property
    def wasted_pages(self) -> int:
        return self._wasted

    @property
    def largest_run(self) -> int:
        return next((1 << order for order in reversed(range(len(self._free))) if self._free[order]), 0)

    def reserve(self, pages: int) -> Range | None:
        if pages < 1:
            raise ValueError(f"a reservation has at least one page, not {pages}")
        wanted = (pages - 1).bit_length()
        order = next((each for each in range(wanted, len(self._free)) if self._free[each]), None)
        if order is None:
            return None
        start = min(self._free[order])
        del self._free[order][start]
        while order > wanted:
            order -= 1
            self._free[order][start + (1 << order)] = None
        self._hold(start, _Block(order, start, start + pages))
        self._free_pages -= 1 << order
        return Range(start, pages)

    def free(self, part: Range) -> None:
        if part.pages < 1:
            raise ValueError(f"{part} is not reserved")
        pieces, at = list[tuple[int, int, int]](), part.start
        while at < part.end:
            start = self._block_of(at)
            if start is None or not self._taken[start].low <= at < self._taken[start].high:
                raise ValueError(f"{part} is not reserved")
            pieces.append((start, at, min(part.end, self._taken[start].high)))
            at = pieces[-1][2]
        for start, low, high in pieces:
            self._release(start, low, high)

    def check_invariants(self) -> None:
        blocks = [(start, order, False) for order, starts in enumerate(self._free) for start in starts]
        blocks += [(start, block.order, True) for start, block in self._taken.items()]
        at = 0
        for start, order, taken in sorted(blocks):
            assert start == at and start % (1 << order) == 0, "blocks tile the space, each at a multiple of its size"
            at += 1 << order
            if taken:
                block = self._taken[start]
                assert start <= block.low < block.high <= at
        assert at == self.total
        assert self._free_pages == sum(len(starts) << order for order, starts in enumerate(self._free))
        assert self._wasted == sum((1 << each.order) - (each.high - each.low) for each in self._taken.values())

    def _hold(self, start: int, block: _Block) -> None:
        self._taken[start] = block
        self._wasted += (1 << block.order) - (block.high - block.low)

    def _block_of(self, page: int) -> int | None:
        """The start of the reserved block that has this page."""
        for order in range(len(self._free)):
            start = page >> order << order
            block = self._taken.get(start)
            if block is not None and block.order >= order and page < start + (1 << block.order):
                return start
        return None

    def _release(self, start: int, low: int, high: int) -> None:
        """Pages `low` to `high`, all of them handed out, of the block at `start`. A block that still has one is cut until
        each piece is free, or handed out from one page to another with a page in either half."""
        block = self._taken.pop(start)
        self._wasted -= (1 << block.order) - (block.high - block.low)
        left, right = (block.low, low), (high, block.high)
        if left[0] == left[1] and right[0] == right[1]:
            self._join(start, block.order)
            return
        middle = start + (1 << block.order >> 1)
        if left[0] == left[1] or right[0] == right[1]:  # what stays is in one piece
            kept = left if left[0] < left[1] else right
            if kept[0] < middle < kept[1] or not block.order:
                self._hold(start, _Block(block.order, *kept))
                return
        for half, (a, b) in ((start, (start, middle)), (middle, (middle, start + (1 << block.order)))):
            held = (max(a, block.low), min(b, block.high))
            freed = (max(low, held[0]), min(high, held[1]))
            if held[0] >= held[1]:
                self._join(half, block.order - 1)
                continue
            self._hold(half, _Block(block.order - 1, *held))
            if freed[0] < freed[1]:
                self._release(half, *freed)

    def _join(self, start: int, order: int) -> None:
        """The block is free; it becomes one with its buddy as long as that is free."""
        self._free_pages += 1 << order
        while order + 1 < len(self._free) and (buddy := start ^ (1 << order)) in self._free[order]:
            del self._free[order][buddy]
            start, order = min(start, buddy), order + 1
        self._free[order][start] = None

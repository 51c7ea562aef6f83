"""Contiguous ranges of pages, and two ways to choose one: first fit and best fit.

An allocator hands out ranges of a line of `total` pages and takes any part of them back. What is free lies in maximal runs:
two that touch are one. Nothing is moved, so free pages may be enough and yet lie in runs that are each too short; that is
fragmentation, and `largest_run` against `free_pages` is how much of it there is.

Cost with r free runs: `reserve` O(r), `free` and `take` O(log r) to find the place and O(r) to move what is behind it in an
array, `largest_run` O(r). A worker has some tens of runs.
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from operator import sub
from typing import Protocol


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """Pages `start` up to, not including, `start + pages`."""

    start: int
    pages: int

    @property
    def end(self) -> int:
        return self.start + self.pages

    def part(self, start: int, pages: int) -> "Range":
        """`pages` pages from `start` of its own on."""
        return Range(self.start + start, pages)


def joined(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """Ranges that do not overlap, in order, those that touch as one, empty ones left out."""
    found: list[Range] = []
    for each in sorted(each for each in ranges if each.pages):
        if found and found[-1].end == each.start:
            found[-1] = Range(found[-1].start, found[-1].pages + each.pages)
        else:
            found.append(each)
    return tuple(found)


class Allocator(Protocol):
    """`total` pages, `free_pages` of them free. `wasted_pages`: reserved and part of no range handed out (rounding)."""

    total: int

    @property
    def free_pages(self) -> int: ...

    @property
    def wasted_pages(self) -> int: ...

    @property
    def largest_run(self) -> int:
        """Pages of the largest reservation that would succeed now."""
        ...

    def reserve(self, pages: int) -> Range | None:
        """A range of so many pages (at least 1), or None if there is no run for it."""
        ...

    def free(self, part: Range) -> None:
        """Gives back a range, or any part of one. Raises ValueError if some of it is not reserved."""
        ...

    def check_invariants(self) -> None:
        """Raises AssertionError if its books do not balance."""
        ...


class FreeRuns:
    """Maximal free runs by place. `_choose` says where a reservation begins; the rest is the same for every rule."""

    def __init__(self, total: int) -> None:
        if total < 1:
            raise ValueError(f"a page space needs at least one page, not {total}")
        self.total = total
        self._starts = [0]
        self._ends = [total]
        self._free = total

    @property
    def free_pages(self) -> int:
        return self._free

    @property
    def wasted_pages(self) -> int:
        return 0

    @property
    def largest_run(self) -> int:
        return max(map(sub, self._ends, self._starts), default=0)

    def longest(self) -> Range | None:
        """The longest free run, of equals the first; None if no page is free."""
        pages = self.largest_run
        index = next((i for i, start in enumerate(self._starts) if self._ends[i] - start == pages), None)
        return None if index is None else Range(self._starts[index], pages)

    def runs(self) -> list[Range]:
        """The free runs, in order."""
        return [Range(start, end - start) for start, end in zip(self._starts, self._ends, strict=True)]

    def reserve(self, pages: int) -> Range | None:
        if pages < 1:
            raise ValueError(f"a reservation has at least one page, not {pages}")
        start = self._choose(pages)
        if start is None:
            return None
        found = Range(start, pages)
        self.take(found)
        return found

    def take(self, wanted: Range) -> None:
        """Reserves exactly these pages. Raises ValueError if one of them is not free."""
        index = bisect_right(self._starts, wanted.start) - 1
        if index < 0 or wanted.pages < 1 or wanted.end > self._ends[index]:
            raise ValueError(f"{wanted} is not free")
        start, end = self._starts[index], self._ends[index]
        rest = [(a, b) for a, b in ((start, wanted.start), (wanted.end, end)) if a < b]
        self._starts[index : index + 1] = [a for a, _ in rest]
        self._ends[index : index + 1] = [b for _, b in rest]
        self._free -= wanted.pages

    def free(self, part: Range) -> None:
        index = bisect_right(self._starts, part.start)  # of the run behind it
        before = self._ends[index - 1] if index else 0
        after = self._starts[index] if index < len(self._starts) else self.total
        if part.pages < 1 or part.start < before or part.end > after:
            raise ValueError(f"{part} is not reserved")
        left = bool(index) and before == part.start
        right = index < len(self._starts) and after == part.end
        low, high = index - left, index + right
        start = self._starts[low] if left else part.start
        end = self._ends[high - 1] if right else part.end
        self._starts[low:high] = [start]
        self._ends[low:high] = [end]
        self._free += part.pages

    def check_invariants(self) -> None:
        assert len(self._starts) == len(self._ends)
        assert self._free == sum(end - start for start, end in zip(self._starts, self._ends, strict=True))
        places = [place for run in zip(self._starts, self._ends, strict=True) for place in run]
        assert all(a < b for a, b in pairwise(places)), "runs are not empty, in order and apart"
        assert not places or (places[0] >= 0 and places[-1] <= self.total)

    def _choose(self, pages: int) -> int | None:
        raise NotImplementedError


class FirstFit(FreeRuns):
    """The first run that is long enough, from its beginning."""

    def _choose(self, pages: int) -> int | None:
        runs = zip(self._starts, self._ends, strict=True)
        return next((start for start, end in runs if end - start >= pages), None)


class BestFit(FreeRuns):
    """The shortest run that is long enough, from its beginning; of equals the first."""

    def _choose(self, pages: int) -> int | None:
        runs = zip(self._starts, self._ends, strict=True)
        fits = [(end - start, start) for start, end in runs if end - start >= pages]
        return min(fits)[1] if fits else None

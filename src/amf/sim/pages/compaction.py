"""Where to move least to make one long free run.

Free runs that follow each other become one if what lies between them slides together. So the pass looks, over all rows of
neighbouring runs that are long enough together, for the row with the fewest pages between. It always succeeds if that many
pages are free at all. Cost: O(r) for r free runs to choose; the moving itself is a copy of the pages between, done by whoever
owns the memory while nobody reads them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from amf.sim.pages.ranges import Range


@dataclass(frozen=True, slots=True)
class Slide:
    """All that is reserved within `window` moves to its beginning, in order; that is `pages` pages."""

    window: Range
    pages: int


def cheapest_slide(runs: Sequence[Range], pages: int) -> Slide | None:
    """`runs`: the free ones, in order. None if they are shorter than `pages` together."""
    best: Slide | None = None
    first, free = 0, 0
    for last in runs:
        free += last.pages
        while free - runs[first].pages >= pages:
            free -= runs[first].pages
            first += 1
        start = runs[first].start
        between = last.end - start - free
        if free >= pages and (best is None or between < best.pages):
            best = Slide(Range(start, last.end - start), between)
    return best

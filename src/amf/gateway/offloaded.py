"""What the lower tiers of one worker were said to hold, block by block, so that only what has changed is told to the fabric.

The fabric counts copies of a block; whoever tells it of one has to take it back, once. So each block is told once, stays as
long as it is confirmed, and is taken back when it is denied, when it was not confirmed for long, or when there are too many.
The longest unconfirmed go first, and of one prompt its end before its beginning: what is left is always of use.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from amf.core.types import Tier


@dataclass(slots=True)
class News:
    """Blocks that are now believed, and are no longer believed, by tier. The first are to be told before the second."""

    stored: dict[Tier, list[int]] = field(default_factory=dict)
    evicted: dict[Tier, list[int]] = field(default_factory=dict)


class Offloaded:
    def __init__(self, *, max_blocks: int, believe_s: float) -> None:
        self._max_blocks = max_blocks
        self._believe_s = believe_s
        self._held: dict[int, tuple[Tier, float]] = {}  # key -> where, and when it was last told; the longest ago first

    def __len__(self) -> int:
        return len(self._held)

    def told(self, present: Sequence[int], absent: Sequence[int], tier: Tier, now_s: float) -> News:
        """Of a prompt: the keys at its beginning that lie in `tier`, and those at its end that lie in none."""
        news = News()
        for key in reversed(present):
            known = self._held.pop(key, None)
            self._held[key] = (tier, now_s)
            if known is None or known[0] is not tier:
                news.stored.setdefault(tier, []).append(key)
                if known is not None:
                    news.evicted.setdefault(known[0], []).append(key)
        for key in absent:
            self._drop(key, news)
        while self._held:
            oldest = next(iter(self._held))
            if len(self._held) <= self._max_blocks and self._held[oldest][1] >= now_s - self._believe_s:
                break
            self._drop(oldest, news)
        return news

    def forget(self) -> News:
        """All of it is believed no more."""
        news = News()
        for key in list(self._held):
            self._drop(key, news)
        return news

    def _drop(self, key: int, news: News) -> None:
        known = self._held.pop(key, None)
        if known is not None:
            news.evicted.setdefault(known[0], []).append(key)

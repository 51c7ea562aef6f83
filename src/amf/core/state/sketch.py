"""A streaming sketch of one quantity: its quantiles, its mean, and how much evidence stands behind them.

Values fall into buckets whose bounds grow by a fixed factor g = (1 + a) / (1 - a): bucket i holds (g^(i-1), g^i] and answers
with 2 g^i / (g + 1), which is off by at most the share a of any value in it. So a quantile is within a = 2 % of the exact
one by nearest rank (the smallest value with at least q of the weight at or below it), whatever the distribution, and two
sketches are merged by adding bucket to bucket. This is the idea of DDSketch (Masson, Rim, Lee, VLDB 2019); its libraries
are not used since the core imports none but the standard ones, and none of them forgets.

Bounds of that promise. Values up to a millionth count as 0, values above 10^15 as 10^15, negative ones as 0. At most
256 buckets are kept, a span of 1 : 28,000; of a wider sketch the lowest are poured into the next above, so its low quantiles
come out too high and its high ones stay right. When the weight passes 2,000 all weights are halved, and buckets that are
next to nothing go: the sketch follows drift, and `count` is the evidence that is left, not all there ever was. The mean is
exact until the first halving and within a from then on.
"""

from bisect import bisect_left
from collections.abc import Callable
from itertools import accumulate
from math import ceil, exp, inf, log
from typing import Any

ERROR = 0.02  # relative, of a quantile
MAX_BUCKETS = 256
MEMORY = 2_000.0  # weight beyond which all weights are halved

_LOG_GROWTH = log((1.0 + ERROR) / (1.0 - ERROR))
_PER_LOG = 1.0 / _LOG_GROWTH
_LOG_CENTRE = log(1.0 - ERROR)  # a bucket's answer over its upper bound
_TINY, _HUGE = 1e-6, 1e15
_ZERO = -1_000_000  # the bucket of 0, below all others
_LOWEST, _HIGHEST = ceil(log(_TINY) * _PER_LOG), ceil(log(_HUGE) * _PER_LOG)
_AT_ONCE = 32
_DUST = 1.0 / 64.0  # weight of a bucket that is forgotten at the next halving


class Sketch:
    """Values wait in a list and are sorted into their buckets by the dozen, which takes a third of the time. What comes of
    them does not depend on when that is."""

    __slots__ = ("_buckets", "_count", "_sum", "_waiting")

    def __init__(self) -> None:
        self._buckets: dict[int, float] = {}
        self._count = 0.0
        self._sum = 0.0
        self._waiting: list[float] = []

    def observe(self, value: float, weight: float = 1.0) -> None:
        """`weight` is above 0. Anything that is no number from 0 on counts as 0."""
        if weight == 1.0:
            self._waiting.append(value)
            if len(self._waiting) >= _AT_ONCE:
                self._settle()
        else:
            self._settle()
            self._add(value, weight)

    @property
    def count(self) -> float:
        """The weight of what is remembered."""
        if self._waiting:
            self._settle()
        return self._count

    @property
    def mean(self) -> float:
        """Of what is remembered; 0 while there is nothing."""
        return self._sum / count if (count := self.count) else 0.0

    def quantile(self, q: float) -> float:
        """The value that a share `q` of the weight does not exceed, within ERROR; 0 while there is nothing. `q` outside
        0 to 1 counts as the nearer of them."""
        rest, index = q * self.count, _ZERO
        for index in sorted(self._buckets):
            rest -= self._buckets[index]
            if rest <= 0.0:
                break
        return _answer(index)

    def curve(self) -> Callable[[float], float]:
        """`quantile` as it is now, for many questions: the buckets are sorted once."""
        total, values = self.count, [(_answer(index), self._buckets[index]) for index in sorted(self._buckets)]
        answers, ends = [value for value, _ in values] or [0.0], list(accumulate(weight for _, weight in values))
        return lambda q: answers[min(bisect_left(ends, q * total), len(answers) - 1)]

    def merge(self, other: "Sketch") -> None:
        """Observe what `other` has observed, as far as it remembers."""
        self._settle()
        other._settle()
        for index, weight in other._buckets.items():
            self._buckets[index] = self._buckets.get(index, 0.0) + weight
        self._count += other._count
        self._sum += other._sum
        self._shrink()

    def to_dict(self) -> dict[str, Any]:
        self._settle()
        return {"sum": self._sum, "buckets": [[index, self._buckets[index]] for index in sorted(self._buckets)]}

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> "Sketch":
        """Raises KeyError, TypeError or ValueError for what `to_dict` cannot have written."""
        sketch = cls()
        sketch._sum = measure(document["sum"])
        for index, weight in document["buckets"]:
            if type(index) is not int or not (_LOWEST <= index <= _HIGHEST or index == _ZERO):
                raise ValueError(f"a sketch has no bucket {index!r}")
            if measure(weight) <= 0.0:
                raise ValueError(f"bucket {index} of a sketch weighs {weight!r}")
            sketch._buckets[index] = float(weight)
        sketch._count = sum(sketch._buckets.values())
        sketch._shrink()
        return sketch

    def _settle(self) -> None:
        waiting, self._waiting = self._waiting, []
        room = min(MAX_BUCKETS - len(self._buckets), MEMORY - self._count)
        if len(waiting) > room:
            for value in waiting:
                self._add(value, 1.0)
            return
        buckets, total = self._buckets, self._sum
        for value in waiting:
            if _TINY < value <= _HUGE:
                index = ceil(log(value) * _PER_LOG)
            else:
                value, index = _beyond(value)
            buckets[index] = buckets.get(index, 0.0) + 1.0
            total += value
        self._sum = total
        self._count += len(waiting)

    def _add(self, value: float, weight: float) -> None:
        if _TINY < value <= _HUGE:
            index = ceil(log(value) * _PER_LOG)
        else:
            value, index = _beyond(value)
        self._buckets[index] = self._buckets.get(index, 0.0) + weight
        self._count += weight
        self._sum += value * weight
        self._shrink()

    def _shrink(self) -> None:
        """Back within the bounds."""
        while self._count > MEMORY:
            self._buckets = {index: weight / 2.0 for index, weight in self._buckets.items() if weight > _DUST}
            self._count = sum(self._buckets.values())
            self._sum = sum(_answer(index) * weight for index, weight in self._buckets.items())
        excess = len(self._buckets) - MAX_BUCKETS
        if excess > 0:
            indices = sorted(index for index in self._buckets if index != _ZERO)
            for index in indices[:excess]:
                self._buckets[indices[excess]] += self._buckets.pop(index)


def measure(value: object) -> float:
    """`value` as a number from 0 on. Raises ValueError if it is none."""
    if type(value) not in (int, float) or not 0.0 <= value < inf:  # type: ignore[operator]
        raise ValueError(f"{value!r} is no number from 0 on")
    return float(value)  # type: ignore[arg-type]


def _answer(index: int) -> float:
    return exp(index * _LOG_GROWTH + _LOG_CENTRE) if index != _ZERO else 0.0


def _beyond(value: float) -> tuple[float, int]:
    """What a value outside the range counts as, and its bucket."""
    return (_HUGE, _HIGHEST) if value > _HUGE else (0.0, _ZERO)

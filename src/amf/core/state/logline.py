"""A positive quantity predicted from two others: a straight line through logarithms, learned as they come.

log y = a + b1 x1 + b2 x2 + noise, by ridge regression: the sums of squares of the centred x are raised by _RIDGE, so with
little evidence, or where the x hardly differ, the answer stays near the mean of log y. Older observations fade, by a
thousandth with each new one. The noise is taken as normal, so y is lognormal around its prediction.
"""

from dataclasses import dataclass
from math import erf, exp, isfinite, log, sqrt

_KEEP = 0.999
_RIDGE = 2.0
_LEAST_VARIANCE = 1e-4
_FARTHEST = 50.0  # of log y: no line is believed further out


@dataclass(frozen=True, slots=True)
class Guess:
    """A lognormal: `median`, and `sigma` of its logarithm."""

    median: float
    sigma: float

    @property
    def mean(self) -> float:
        return self.median * exp(self.sigma * self.sigma / 2)

    def odds_below(self, value: float) -> float:
        """That it is at most `value`."""
        if value <= 0.0:
            return 0.0
        return 0.5 * (1.0 + erf(log(value / self.median) / (self.sigma * sqrt(2.0))))


class LogLine:
    """Sums over what was observed, faded."""

    __slots__ = ("_sums",)

    def __init__(self) -> None:
        self._sums = [0.0] * 10  # 1, x1, x2, y, x1 x1, x1 x2, x2 x2, x1 y, x2 y, y y

    def observe(self, x1: float, x2: float, y: float) -> None:
        """Logarithms all three."""
        terms = (1.0, x1, x2, y, x1 * x1, x1 * x2, x2 * x2, x1 * y, x2 * y, y * y)
        self._sums = [old * _KEEP + new for old, new in zip(self._sums, terms, strict=True)]

    def guess(self, x1: float, x2: float) -> Guess:
        """1 with no certainty while nothing was observed."""
        n, s1, s2, sy, s11, s12, s22, s1y, s2y, syy = self._sums
        if not n:
            return Guess(1.0, 1.0)
        c11, c12, c22 = s11 - s1 * s1 / n + _RIDGE, s12 - s1 * s2 / n, s22 - s2 * s2 / n + _RIDGE
        c1y, c2y = s1y - s1 * sy / n, s2y - s2 * sy / n
        determinant = c11 * c22 - c12 * c12
        b1, b2 = (c1y * c22 - c2y * c12) / determinant, (c2y * c11 - c1y * c12) / determinant
        unexplained = (syy - sy * sy / n - b1 * c1y - b2 * c2y) / n
        log_median = sy / n + b1 * (x1 - s1 / n) + b2 * (x2 - s2 / n)
        log_median = max(-_FARTHEST, min(log_median, _FARTHEST))
        return Guess(exp(log_median), sqrt(max(unexplained, _LEAST_VARIANCE)))

    def to_list(self) -> list[float]:
        return list(self._sums)

    @classmethod
    def from_list(cls, document: list[object]) -> "LogLine":
        """Raises TypeError or ValueError for what `to_list` cannot have written."""
        line = cls()
        if len(document) != len(line._sums):
            raise ValueError(f"a line has {len(line._sums)} sums, not {len(document)}")
        line._sums = [float(each) for each in document]  # type: ignore[arg-type]
        n, *_ = line._sums
        if not all(map(isfinite, line._sums)) or n < 0.0 or (not n and any(line._sums)):
            raise ValueError(f"no line has the sums {line._sums}")
        return line

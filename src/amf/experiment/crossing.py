"""Where on an axis a figure reaches a target, read between two settings that were played."""

from collections.abc import Sequence
from itertools import pairwise
from math import exp, log


def crossing(points: Sequence[tuple[float, float]], target: float) -> float | None:
    """The smallest x (above 0) at which the line through `points` (x, y), ascending in x, is at `target` or above: straight
    in log x between neighbours. None if no point is there, or if the first one is already: nothing is extrapolated."""
    if not points or points[0][1] >= target:
        return None
    for (x0, y0), (x1, y1) in pairwise(points):
        if y0 < target <= y1:
            return exp(log(x0) + (log(x1) - log(x0)) * (target - y0) / (y1 - y0))
    return None

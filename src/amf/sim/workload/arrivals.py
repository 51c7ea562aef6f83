"""When pipelines start in an open loop."""

from collections.abc import Callable, Iterator
from itertools import islice
from random import Random

BURST_S, BURST_FACTOR = 10.0, 3.0
LULL_S, LULL_FACTOR = 40.0, 0.5


def arrival_times(arrival: str, count: int, rate_per_s: float, cv: float, rng: Random) -> list[float]:
    """`count` ascending times in seconds with a mean of `rate_per_s`. `arrival`: poisson; gamma with coefficient of
    variation `cv` between arrivals; bursty (rate x3 for 10 s, x0.5 for 40 s, in turn: the mean is the same)."""
    if arrival == "poisson":
        return list(islice(_summed(lambda: rng.expovariate(rate_per_s)), count))
    if arrival == "gamma":
        shape = 1 / cv**2
        return list(islice(_summed(lambda: rng.gammavariate(shape, 1 / (shape * rate_per_s))), count))
    if arrival == "bursty":
        return list(islice(_bursty(rate_per_s, rng), count))
    raise ValueError(f"arrival {arrival!r} is not poisson, gamma or bursty")


def _summed(gap_s: Callable[[], float]) -> Iterator[float]:
    at_s = 0.0
    while True:
        at_s += gap_s()
        yield at_s


def _bursty(rate_per_s: float, rng: Random) -> Iterator[float]:
    """A Poisson process in warped time: unit-rate arrivals, spent faster in bursts than in lulls."""
    start_s, budget = 0.0, rng.expovariate(1.0)
    while True:
        for length_s, factor in ((BURST_S, BURST_FACTOR), (LULL_S, LULL_FACTOR)):
            rate, at_s = rate_per_s * factor, start_s
            while budget <= (start_s + length_s - at_s) * rate:
                at_s += budget / rate
                yield at_s
                budget = rng.expovariate(1.0)
            budget -= (start_s + length_s - at_s) * rate
            start_s += length_s

"""Distributions to draw from, each given by numbers one can look up: a median and a spread, or published quantiles."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log
from random import Random
from statistics import NormalDist
from typing import Self


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Lognormal by median and sigma of the logarithm, cut at `low` and `high`."""

    median: float
    sigma: float = 0.5
    low: float = 0.0
    high: float = float("inf")

    def draw(self, rng: Random, factor: float = 1.0) -> float:
        """`factor` multiplies the median (a pipeline's difficulty, a context scale)."""
        return min(max(self.median * factor * exp(rng.gauss(0.0, self.sigma)), self.low), self.high)


@dataclass(frozen=True, slots=True)
class LogUniform:
    low: float
    high: float

    @property
    def median(self) -> float:
        return exp((log(self.low) + log(self.high)) / 2)

    def draw(self, rng: Random, factor: float = 1.0) -> float:
        return factor * exp(rng.uniform(log(self.low), log(self.high)))


@dataclass(frozen=True, slots=True)
class Quantiles:
    """A distribution through known quantiles: the logarithm is linear in the normal score between neighbours (so two
    points are a lognormal) and goes on with the last slope beyond them, cut at `low` and `high`."""

    points: tuple[tuple[float, float], ...]  # (normal score, log of the value), ascending
    low: float
    high: float

    @classmethod
    def of(cls, quantiles: Sequence[tuple[float, float]], low: float, high: float) -> Self:
        """`quantiles` are (share below, value) with at least two points; values are above 0."""
        standard = NormalDist()
        return cls(tuple((standard.inv_cdf(share), log(value)) for share, value in quantiles), low, high)

    def draw(self, rng: Random) -> float:
        score = rng.gauss(0.0, 1.0)
        right = next((i for i, (at, _) in enumerate(self.points) if i and at >= score), len(self.points) - 1)
        (z0, v0), (z1, v1) = self.points[right - 1], self.points[right]
        return min(max(exp(v0 + (v1 - v0) * (score - z0) / (z1 - z0)), self.low), self.high)

"""How long a pipeline takes from end to end, and what is left of it after each hop, as distributions and not as means.

Tails do not add: the 99th percentiles of seven hops, summed, overstate the 99th percentile of the sum about twice, for all
seven are hardly ever slow at once. So whole pipelines are composed, `points` of them, and the quantiles of what comes out
are read off.

*Points.* A lattice: the i-th point has stratum a^j i mod n in coordinate j, n a prime, each coordinate shifted by its own
constant. Every coordinate so takes the midpoint of each of n equally likely strata exactly once, and what any hop does on
its own is met exactly; only how hops combine is sampled. After 32 coordinates i is replaced by i^e, e coprime to n - 1,
which permutes the strata anew. Nothing is random: the same hops give the same answer, and a hop that gets slower makes no
quantile smaller. Error: the share of sums of exponentials below what is called a quantile is off by up to 2.5 points of a
hundred with 257 points, 1.2 with 4,099 (2 to 33 hops, p50 to p99; `tests/core/test_path.py`). In seconds this is most
where tails are heavy: a p99 of 257 points rests on three of them.

*Dependence.* A hard task is hard for all of its hops: hop times share one factor, as a Gaussian copula with one correlation
for all pairs. 0 is independence. 1 is comonotone, and only then a chain's quantiles are the sums of its hops' quantiles.

*Structure*, as in `graph.py`: sure edges fan out, and the longest way counts; of conditional edges at most one is taken; a
loop repeats its longest way, with new times each time, as often as its probability says; a branch group counts as one way.
A loop inside another's body repeats as it did at first. Choices are independent of times.

Reading: ranks of a copula sample, Iman & Conover 1982; lattice rules, Niederreiter 1992.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import count, islice
from math import erf, exp, floor, gcd, log, pi, sqrt
from operator import add
from typing import Final

from amf.core.graph import CallGraph, Edge, GraphError
from amf.core.graph_parts import BranchGroup, GroupKind

POINTS: Final = 257
FINE_POINTS: Final = 4099
_MULTIPLIERS: Final = {POINTS: 131, FINE_POINTS: 1232}  # chosen by pairs and triples of coordinates
_COORDINATES: Final = 32
_GOLDEN: Final = (sqrt(5) - 1) / 2
_PRIOR_PIPELINES: Final = 20

Column = Sequence[float]


@dataclass(frozen=True, slots=True)
class HopTime:
    """Seconds of a hop: `quantile(q)` for 0 < q < 1, never falling in q, after a fixed gap (a tool, a human)."""

    quantile: Callable[[float], float]
    gap_s: float = 0.0


class Samples:
    """Equally likely values; quantiles are linear between the midpoints of their strata."""

    def __init__(self, values: Column) -> None:
        self.values = tuple(sorted(values))

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)

    def quantile(self, q: float) -> float:
        """The value below which a share `q` lies. ValueError for a share outside [0, 1]."""
        if not 0 <= q <= 1:
            raise ValueError(f"a quantile is a share between 0 and 1, not {q}")
        place = min(max(q * len(self.values) - 0.5, 0.0), len(self.values) - 1.0)
        low = floor(place)
        high = min(low + 1, len(self.values) - 1)
        return self.values[low] + (place - low) * (self.values[high] - self.values[low])


class PathTimes:
    """Seconds of whole pipelines and of what remains of them; `path_times` makes it."""

    def __init__(self, total: Column, own: Mapping[str, Column], after: Mapping[str, Column]) -> None:
        self._total, self._own, self._after = total, own, after
        self._sorted: dict[str, Samples] = {}

    @cached_property
    def total(self) -> Samples:
        """From the start of the roots to the end of the last hop."""
        return Samples(self._total)

    def after(self, hop: str) -> Samples:
        """The critical path strictly after a hop that has ended for the first time. GraphError if it is unknown."""
        if hop not in self._after:
            raise GraphError(f"there is no hop {hop!r}; known: {', '.join(self._after)}")
        if hop not in self._sorted:
            self._sorted[hop] = Samples(self._after[hop])
        return self._sorted[hop]

    def since(self, hop: str) -> Samples:
        """The critical path from the start of a hop on, its own gap and time included. GraphError if it is unknown."""
        self.after(hop)
        return Samples(list(map(add, self._own[hop], self._after[hop])))


class Correlation:
    """The common correlation of hop times within pipelines, learned from pipelines that were seen.

    A hop's score is log(its seconds / the hop's median) over the hop's standard deviation of logs. Over pipelines of m >= 2
    scores z, r = sum [((sum z)^2 - sum z^2) / (m - 1)] / sum [sum z^2] is the mean product of two scores of a pipeline over
    the mean square. `value` is r, not below 0, times n / (n + 20) after n pipelines: with little evidence hops count as
    independent.
    """

    __slots__ = ("pipelines", "products", "squares")

    def __init__(self) -> None:
        self.pipelines = 0
        self.products = 0.0
        self.squares = 0.0

    def observe(self, scores: Sequence[float]) -> None:
        """The scores of one pipeline's hops; with fewer than two it says nothing."""
        if len(scores) < 2:
            return
        squares = sum(score * score for score in scores)
        self.pipelines += 1
        self.squares += squares
        self.products += (sum(scores) ** 2 - squares) / (len(scores) - 1)

    @property
    def value(self) -> float:
        if self.squares <= 0.0:
            return 0.0
        seen = min(1.0, max(0.0, self.products / self.squares))
        return seen * self.pipelines / (self.pipelines + _PRIOR_PIPELINES)


def score(seconds: float, median_s: float, sigma: float) -> float:
    """What `Correlation` takes of a hop: 0 where one of the three is not above 0."""
    return log(seconds / median_s) / sigma if seconds > 0 and median_s > 0 and sigma > 0 else 0.0


def path_times(
    graph: CallGraph, times: Mapping[str, HopTime], correlation: float = 0.0, points: int = POINTS
) -> PathTimes:
    """Compose `points` pipelines (POINTS or FINE_POINTS). `correlation` counts in hundredths. Each quantile function is asked
    `points` times; the rest is O(points x (hops + edges + repetitions)).

    Raises GraphError if a hop has no time, ValueError for a correlation outside [0, 1] or another number of points.
    """
    if not 0 <= correlation <= 1:
        raise ValueError(f"a correlation of hop times lies between 0 and 1, not {correlation}")
    if points not in _MULTIPLIERS:
        raise ValueError(f"{points} points: choose {' or '.join(map(str, _MULTIPLIERS))}")
    lacking = [hop for hop in graph.order if hop not in times]
    if lacking:
        raise GraphError(f"graph {graph.name!r}: no time is known for {', '.join(lacking)}; give each hop one")
    return _Composition(graph, times, round(correlation, 2), points).composed()


class _Composition:
    """One composition. Coordinates are given out in an order that depends on the graph alone."""

    def __init__(self, graph: CallGraph, times: Mapping[str, HopTime], correlation: float, points: int) -> None:
        self._graph = graph
        self._correlation = correlation
        self._points = points
        self._coordinates = count(1)  # 0 is the common factor
        strata = [(k + 0.5) / points for k in range(points)]
        self._tables = {hop: [times[hop].gap_s + times[hop].quantile(q) for q in strata] for hop in graph.order}
        self._none: Column = [0.0] * points

    def composed(self) -> PathTimes:
        graph = self._graph
        own = {hop: self._time(hop) for hop in graph.order}
        extra: dict[str, Column] = {}
        for loop in graph.loops:
            extra[loop.source] = _sum(extra.get(loop.source), self._repeated(loop, extra))
        after: dict[str, Column] = {}
        for hop in reversed(graph.order):
            ways = [(edge, _sum(own[edge.target], after[edge.target])) for edge in graph.children(hop)]
            after[hop] = _sum(extra.get(hop), self._onward(hop, ways))
        starts = [(Edge(source="", target=root), _sum(own[root], after[root])) for root in graph.roots]
        return PathTimes(self._onward("", starts), own, after)

    def _time(self, hop: str) -> Column:
        """The hop's seconds in each pipeline, at a coordinate of its own."""
        table = self._tables[hop]
        return [table[rank] for rank in _ranks(next(self._coordinates), self._correlation, self._points)]

    def _chance(self) -> Column:
        """A uniform variable for a choice."""
        return [(stratum + 0.5) / self._points for stratum in _strata(next(self._coordinates), self._points)]

    def _repeated(self, loop: Edge, extra: Mapping[str, Column]) -> Column:
        """Seconds of all repetitions: at least r of them with probability p^r."""
        goes_on, total = self._chance(), self._none
        for repetition in range(1, loop.max_iterations + 1):
            odds = loop.probability**repetition
            if odds < 0.5 / self._points:
                break
            body = self._body(loop, extra)
            total = [
                sum_s + body_s if u < odds else sum_s for sum_s, body_s, u in zip(total, body, goes_on, strict=True)
            ]
        return total

    def _body(self, loop: Edge, extra: Mapping[str, Column]) -> Column:
        """Seconds of one repetition: the longest way from the loop's target to its source."""
        graph = self._graph
        inside = [h for h in graph.order if graph.precedes(loop.target, h) and graph.precedes(h, loop.source)]
        longest: dict[str, Column] = {}
        for hop in inside:
            arrived = self._none
            for edge in graph.parents(hop):
                if edge.source in longest:
                    arrived = list(map(max, arrived, _sum(extra.get(edge.source), longest[edge.source])))
            longest[hop] = _sum(self._time(hop), arrived)
        return longest[loop.source]

    def _onward(self, hop: str, ways: Sequence[tuple[Edge, Column]]) -> Column:
        """Seconds from the end of `hop` on, given those each of its edges leads to."""
        looping = sum(loop.probability for loop in self._graph.loops if loop.source == hop and loop.probability < 1)
        scale = 1 / (1 - looping) if looping < 1 else 1.0
        sure = self._none
        maybe: list[tuple[float, Column]] = []
        grouped: dict[str, tuple[BranchGroup, dict[str, Column]]] = {}
        for edge, way in ways:
            group = self._graph.group_of(edge.target)
            if edge.probability < 1:
                maybe.append((min(1.0, edge.probability * scale), way))
            elif group:
                grouped.setdefault(group.name, (group, {}))[1][edge.target] = way
            else:
                sure = list(map(max, sure, way))
        for group, alternatives in grouped.values():
            sure = list(map(max, sure, self._decided(group, alternatives)))
        return self._one_of(maybe, sure) if maybe else sure

    def _one_of(self, maybe: Sequence[tuple[float, Column]], sure: Column) -> Column:
        """At most one of the conditional ways beside the sure one."""
        longest, begin, point = list(sure), 0.0, self._chance()
        for probability, way in maybe:
            end = begin + probability
            for i, u in enumerate(point):
                if begin <= u < end:
                    longest[i] = max(sure[i], way[i])
            begin = end
        return longest

    def _decided(self, group: BranchGroup, ways: Mapping[str, Column]) -> Column:
        """Seconds until the group decides, over those of its alternatives that were started together."""
        columns = list(ways.values())
        if group.kind is GroupKind.BEST_OF:
            return list(map(max, *columns, self._none))
        if group.kind is GroupKind.QUORUM:
            place = min(group.k, len(columns)) - 1
            return [sorted(row)[place] for row in zip(*columns, strict=True)]
        chance = dict(zip(group.alternatives, group.probabilities, strict=False))
        if group.kind is GroupKind.PREDICTED:
            wanted = [chance.get(hop, 1.0) for hop in ways]
            total = sum(wanted)
            shares = [odds / total if total else 1 / len(wanted) for odds in wanted]
            return self._one_of(list(zip(shares, columns, strict=True)), self._none)
        works = [[u < chance.get(hop, 1.0) for u in self._chance()] for hop in ways]
        return [
            min((s for s, good in zip(row, fine, strict=True) if good), default=max(row))
            for row, fine in zip(zip(*columns, strict=True), zip(*works, strict=True), strict=True)
        ]


def _sum(left: Column | None, right: Column) -> Column:
    return right if left is None else list(map(add, left, right))


@lru_cache(maxsize=1024)
def _ranks(coordinate: int, correlation: float, points: int) -> tuple[int, ...]:
    """The stratum of each point in a hop's coordinate: the ranks of sqrt(rho) x common factor + sqrt(1 - rho) x own."""
    own = _strata(coordinate, points)
    if correlation <= 0.0:
        return own
    scores, common = _normal_scores(points), _strata(0, points)
    shared, alone = sqrt(correlation), sqrt(1 - correlation)
    latent = [shared * scores[c] + alone * scores[k] for c, k in zip(common, own, strict=True)]
    ranks = [0] * points
    for rank, point in enumerate(sorted(range(points), key=latent.__getitem__)):
        ranks[point] = rank
    return tuple(ranks)


@lru_cache(maxsize=256)
def _strata(coordinate: int, points: int) -> tuple[int, ...]:
    """The lattice's coordinate: a permutation of the strata."""
    block, place = divmod(coordinate, _COORDINATES)
    factor = pow(_MULTIPLIERS[points], place, points)
    power = next(islice((e for e in count(1) if gcd(e, points - 1) == 1), block, None))
    shift = floor(points * (coordinate * _GOLDEN % 1))
    return tuple((factor * pow(i, power, points) + shift) % points for i in range(points))


@lru_cache(maxsize=4)
def _normal_scores(points: int) -> tuple[float, ...]:
    """The standard normal's quantiles at the midpoints, by Newton's method from 0, which approaches from one side."""
    upper: list[float] = []
    for k in range((points + 1) // 2, points):
        q, z = (k + 0.5) / points, 0.0
        for _ in range(40):
            step = (q - 0.5 - erf(z / sqrt(2)) / 2) * sqrt(2 * pi) * exp(z * z / 2)
            z += step
            if step < 1e-12:
                break
        upper.append(z)
    return (*(-z for z in reversed(upper)), 0.0, *upper)

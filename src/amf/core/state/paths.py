"""What is left of a pipeline after each hop of its declared graph, from what was learned of its hops.

`core/path.py` composes it: learned service times (without our queues), the mean gap before each hop, and the correlation of
hop times within pipelines that have ended. Composing takes milliseconds and a decision asks for it at every look, so what
comes of it is kept for each graph, and composed anew only when the calls that finished in the graph since it was asked for
first have grown by a tenth (by `min_evidence` at least, by 1,000 at most), or when the graph was declared anew.

Kept of a composition is little: the seconds to leave room for after each hop, what is said of the rest from its dispatch on,
and the median and spread of each hop, by which pipelines that end are scored. Both seconds are stated times a factor that
holds them to their word (`hindsight.py`). Graphs are kept as many as the fabric remembers declarations of; the one that was
composed least recently goes first. Correlations and factors outlive a restart; compositions are made anew.

*Room* after a hop is the `budget_quantile` of what remains, but never less than the room after a hop that it may lead to:
where a rare branch leads to much work, the plain quantile before the branch would say nothing of it, and a hop would be due
after a later one. So the due times of a pipeline never fall along an edge.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any

from amf.core.config import FabricConfig
from amf.core.graph import CallGraph
from amf.core.path import Correlation, HopTime, PathTimes, path_times, score
from amf.core.state.hindsight import Factor, Stage, first_services_s
from amf.core.state.sketch import measure

_GROWTH = 0.1
_MOST_CALLS = 1_000
_LOW, _HIGH = 0.16, 0.84  # a standard deviation below and above the median of a normal variable


@dataclass(frozen=True, slots=True)
class Known:
    """Seconds of one hop, and how many observations at its very position stand behind them."""

    time: HopTime
    evidence: float


@dataclass(frozen=True, slots=True)
class Remaining:
    """One composition of `seen`, the graph with learned odds, before it is corrected. `after_s`: room to leave after each hop.
    `since_s`: the `budget_quantile` of the rest from its dispatch on, its own time included. `evidence`: the least of a hop's
    and of those that may follow it. `spread`: median and standard deviation of the logarithm of each hop that has been seen
    at its very position."""

    graph: CallGraph
    seen: CallGraph
    as_of: int
    after_s: Mapping[str, float]
    since_s: Mapping[str, float]
    evidence: Mapping[str, float]
    spread: Mapping[str, tuple[float, float]]


class _Ended:
    """What pipelines of one graph that ended taught."""

    __slots__ = ("correlation", "factor")

    def __init__(self) -> None:
        self.correlation, self.factor = Correlation(), Factor()


class Paths:
    """`known(graph, hop)`: what is known of a hop's seconds now. `seen(graph)`: the graph with the odds known now."""

    def __init__(
        self,
        config: FabricConfig,
        known: Callable[[CallGraph, str], Known],
        seen: Callable[[CallGraph], CallGraph] = lambda graph: graph,
    ) -> None:
        self._config = config
        self._known = known
        self._seen = seen
        self._finished: dict[str, int] = {}  # graph -> calls that finished, once somebody asked for it
        self._remaining: dict[str, Remaining] = {}
        self._ended: dict[str, _Ended] = {}

    def remaining(self, graph: CallGraph) -> Remaining:
        """What is known of it, at most a tenth of the evidence old."""
        found, finished = self._remaining.get(graph.name), self._finished.get(graph.name, 0)
        if found is not None and found.graph is graph and finished < self._renewed_at(found.as_of):
            return found
        found = self._composed(graph, finished)
        self._remaining.pop(graph.name, None)
        self._remaining[graph.name] = found
        self._finished[graph.name] = finished
        if len(self._remaining) > self._config.max_graphs:
            oldest = next(iter(self._remaining))
            del self._remaining[oldest], self._finished[oldest]
        return found

    def composed(self, graph: CallGraph) -> Remaining | None:
        """As it was composed last, if it was; nothing is composed for it."""
        found = self._remaining.get(graph.name)
        return found if found is not None and found.graph is graph else None

    def compose(self, graph: CallGraph, times: Mapping[str, HopTime]) -> PathTimes:
        """Whole pipelines with the correlation measured in this graph."""
        return path_times(graph, times, self.correlation(graph.name))

    def correlation(self, graph: str) -> float:
        """Of hop times within pipelines of this graph; 0 while none has ended."""
        found = self._ended.get(graph)
        return found.correlation.value if found else 0.0

    def factor(self, graph: str) -> float:
        """On what is composed for this graph; 1 while nothing said has been held against what it took."""
        found = self._ended.get(graph)
        return found.factor.value if found else 1.0

    def room_s(self, graph: CallGraph, hop: str) -> float:
        """To leave for what comes after the hop. KeyError if the graph has none of this name."""
        return self.remaining(graph).after_s[hop] * self.factor(graph.name)

    def said_s(self, graph: CallGraph, hop: str) -> float | None:
        """Within which the rest, from the hop's dispatch on, is said to be done with odds `budget_quantile`; None while some
        hop of it has been seen less than `min_evidence` times. KeyError if the graph has none of this name."""
        found = self.remaining(graph)
        enough = found.evidence[hop] >= self._config.min_evidence
        return found.since_s[hop] * self.factor(graph.name) if enough else None

    def observe_call(self, graph: str) -> None:
        """A call of this graph finished."""
        if graph in self._finished:
            self._finished[graph] += 1

    def observe_end(self, graph: str, stages: Sequence[Stage], whole: bool) -> None:
        """A pipeline of this graph came to its end. `whole`: its stages are all its calls."""
        found = self._remaining.get(graph)
        if found is None:
            return
        scores = [
            score(seconds, *found.spread[hop])
            for hop, seconds in first_services_s(stages).items()
            if hop in found.spread and found.spread[hop][1] > 0.0
        ]
        ended = self._ended.pop(graph) if graph in self._ended else _Ended()
        ended.correlation.observe(scores)
        if whole:
            ended.factor.observe(stages, self._config.budget_quantile)
        self._put(graph, ended)

    def records(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, ended in list(self._ended.items()):
            found = ended.correlation
            yield (
                name,
                {
                    "pipelines": found.pipelines,
                    "products": found.products,
                    "squares": found.squares,
                    "factor": ended.factor.value,
                },
            )

    def load(self, name: str, document: Mapping[str, Any]) -> None:
        """Raises KeyError, TypeError or ValueError for what `records` cannot have made."""
        ended = _Ended()
        ended.factor = Factor(measure(document["factor"]))
        found = ended.correlation
        found.pipelines = int(measure(document["pipelines"]))
        found.squares = measure(document["squares"])
        sign = -1.0 if document["products"] < 0 else 1.0
        found.products = sign * measure(sign * document["products"])
        self._put(name, ended)

    def _put(self, graph: str, ended: _Ended) -> None:
        self._ended[graph] = ended
        if len(self._ended) > self._config.max_graphs:
            del self._ended[next(iter(self._ended))]

    def _renewed_at(self, as_of: int) -> int:
        return as_of + int(min(max(_GROWTH * as_of, self._config.min_evidence), _MOST_CALLS))

    def _composed(self, graph: CallGraph, finished: int) -> Remaining:
        known = {hop: self._known(graph, hop) for hop in graph.order}
        seen = self._seen(graph)
        times = self.compose(seen, {hop: each.time for hop, each in known.items()})
        quantile = self._config.budget_quantile
        room: dict[str, float] = {}
        since: dict[str, float] = {}
        evidence: dict[str, float] = {}
        for hop in reversed(graph.order):
            following = [edge.target for edge in graph.children(hop)]
            after_s = times.after(hop).quantile(quantile)
            room[hop] = max([after_s, *(room[child] for child in following)])
            since[hop] = times.since(hop).quantile(quantile) - known[hop].time.gap_s
            evidence[hop] = min([known[hop].evidence, *(evidence[child] for child in following)])
        spread = {hop: _spread(each.time) for hop, each in known.items() if each.evidence}
        return Remaining(graph, seen, finished, room, since, evidence, spread)


def _spread(time: HopTime) -> tuple[float, float]:
    """Median and standard deviation of the logarithm, the latter from the middle two thirds; 0 where nothing varies."""
    low_s, median_s, high_s = (time.quantile(q) for q in (_LOW, 0.5, _HIGH))
    return median_s, (log(high_s / low_s) / 2.0 if 0.0 < low_s < high_s else 0.0)

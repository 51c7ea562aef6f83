"""Which ways pipelines take: for each call graph, how many reached a hop, how often it ran, and how many took an edge.

Counted when a pipeline ends, so a share is one of pipelines that are over. When a graph has seen 2,000 of them all its
counts are halved, and it follows drift. Of one graph 256 hops and 1,024 edges are counted, those least recently seen go first;
of graphs there are as many as the fabric remembers declarations of.

Odds that a graph declares are somebody's guess. `as_seen` gives the graph with what its pipelines did, where the guess counts
like 20 pipelines. An edge that is declared sure stays so.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from amf.core.graph import CallGraph
from amf.core.state.prediction import Place
from amf.core.state.sketch import measure

_MEMORY = 2_000.0  # pipelines of a graph beyond which its counts are halved
_MAX_HOPS, _MAX_EDGES = 256, 1_024
_MAX_TRAIL = 128
_DECLARED_COUNTS = 20.0  # pipelines
_KNOWN_SHARE = 0.9  # of what reached a hop, by an edge that was revealed
_MOST_LOOPING = 0.99

Edge = tuple[str, str]


class Trail:
    """The calls one pipeline has finished, in order: the number of each, from 0, and its place.

    A long one is thinned to every second entry, again and again, so each that is left stands for `stride` of them."""

    __slots__ = ("calls", "entries", "stride")

    def __init__(self) -> None:
        self.calls = 0
        self.stride = 1
        self.entries: list[tuple[int, Place]] = []

    def add(self, place: Place) -> None:
        if self.calls % self.stride == 0:
            self.entries.append((self.calls, place))
            if len(self.entries) > _MAX_TRAIL:
                del self.entries[1::2]
                self.stride *= 2
        self.calls += 1


class Transitions:
    """Of one graph."""

    __slots__ = ("_edges", "_reached", "_runs", "pipelines")

    def __init__(self) -> None:
        self.pipelines = 0.0  # that ended, as far as they are remembered
        self._reached: dict[str, float] = {}  # hop -> pipelines in which it finished
        self._runs: dict[str, float] = {}  # hop -> calls of it that finished
        self._edges: dict[Edge, float] = {}  # (parent hop, hop) -> pipelines that took it

    def observe(self, hops: Mapping[str, int], edges: Iterable[Edge]) -> None:
        """A pipeline ended: its hops with the calls of each that finished, and the edges it revealed."""
        self.pipelines += 1.0
        for hop, calls in islice(hops.items(), _MAX_HOPS):
            self._reached[hop] = self._reached.pop(hop, 0.0) + 1.0
            self._runs[hop] = self._runs.pop(hop, 0.0) + calls
        for edge in islice(edges, _MAX_EDGES):
            self._edges[edge] = self._edges.pop(edge, 0.0) + 1.0
        while len(self._reached) > _MAX_HOPS:
            hop = next(iter(self._reached))
            del self._reached[hop], self._runs[hop]
        while len(self._edges) > _MAX_EDGES:
            del self._edges[next(iter(self._edges))]
        if self.pipelines > _MEMORY:
            self.pipelines /= 2.0
            for counts in (self._reached, self._runs):
                counts.update({hop: count / 2.0 for hop, count in counts.items()})
            self._edges.update({edge: count / 2.0 for edge, count in self._edges.items()})

    def reached(self, hop: str) -> float:
        """Pipelines in which the hop finished."""
        return self._reached.get(hop, 0.0)

    def calls_per_pipeline(self, hop: str) -> float:
        """Mean calls of the hop in a pipeline that reached it: above 1 in a loop; 0 while none has."""
        reached = self.reached(hop)
        return self._runs[hop] / reached if reached else 0.0

    def taken(self, parent: str, hop: str) -> float:
        """Pipelines that went from `parent` to `hop`."""
        return self._edges.get((parent, hop), 0.0)

    def to_dict(self) -> dict[str, Any]:
        return {
            "pipelines": self.pipelines,
            "hops": [[hop, count, self._runs[hop]] for hop, count in self._reached.items()],
            "edges": [[parent, hop, count] for (parent, hop), count in self._edges.items()],
        }

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> "Transitions":
        """Raises KeyError, TypeError or ValueError for what `to_dict` cannot have written."""
        found = cls()
        found.pipelines = measure(document["pipelines"])
        for hop, reached, runs in document["hops"]:
            found._reached[name(hop)] = measure(reached)
            found._runs[name(hop)] = measure(runs)
        for parent, hop, count in document["edges"]:
            found._edges[name(parent), name(hop)] = measure(count)
        return found


def as_seen(graph: CallGraph, seen: Transitions | None) -> CallGraph:
    """The graph, with the odds of its conditional edges and loops from what its pipelines did and what it declares. The graph
    itself where nothing is conditional, or where pipelines do not reveal their edges."""
    conditional = {edge.source for edge in graph.edges if edge.probability < 1.0}
    if seen is None or not conditional or not _reveal(graph, seen):
        return graph
    odds: dict[Edge, float] = {}
    for source in conditional:
        odds.update(_odds(graph, source, seen))
    edges = tuple(
        replace(edge, probability=odds.get((edge.source, edge.target), edge.probability)) for edge in graph.edges
    )
    return replace(graph, edges=edges)


def _reveal(graph: CallGraph, seen: Transitions) -> bool:
    """Do pipelines say which edges they take?"""
    into: dict[str, float] = {}
    for edge in graph.edges:
        into[edge.target] = into.get(edge.target, 0.0) + seen.taken(edge.source, edge.target)
    inner = [hop for hop in graph.order if graph.parents(hop)]
    return sum(into[hop] for hop in inner) >= _KNOWN_SHARE * sum(seen.reached(hop) for hop in inner)


def _odds(graph: CallGraph, source: str, seen: Transitions) -> dict[Edge, float]:
    """Of the conditional edges out of a hop: declared for each of its calls, seen for a pipeline as a whole. It takes a loop
    at least once with the odds of one call, and a way onward with those odds over the odds of not looping."""
    reached = seen.reached(source)
    loops = [edge for edge in graph.loops if edge.source == source and edge.probability < 1.0]
    onward = [edge for edge in graph.children(source) if edge.probability < 1.0]
    staying = 1.0 - sum(edge.probability for edge in loops)

    def share(target: str, declared: float) -> float:
        counted = min(seen.taken(source, target), reached) + _DECLARED_COUNTS * min(declared, 1.0)
        return counted / (reached + _DECLARED_COUNTS)

    odds = {(source, edge.target): share(edge.target, edge.probability) for edge in loops}
    looping = sum(odds.values())
    if looping > _MOST_LOOPING:
        odds = {edge: each * _MOST_LOOPING / looping for edge, each in odds.items()}
    leaving = 1.0 - sum(odds.values())
    for edge in onward:
        eventual = share(edge.target, edge.probability / staying if staying > 0.0 else 1.0)
        odds[source, edge.target] = eventual * leaving
    total = sum(odds.values())
    return {edge: each / total for edge, each in odds.items()} if total > 1.0 else odds


def name(value: object) -> str:
    """`value` as a name. Raises ValueError if it is no text."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no name")
    return value

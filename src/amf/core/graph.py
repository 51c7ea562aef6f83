"""The call graph, and what can be asked of it.

A graph is a DAG of *forward* edges plus *loop* edges (`max_iterations` > 0) that go back. Every question is answered
on the forward DAG; a loop only adds expected repetitions. The rules, in seconds given per hop by the caller:

- Sure edges (probability 1) are all taken: the longest counts. Conditional edges of a hop exclude each other: with A
  the longest sure way on and x_i the way over conditional edge i, the expectation is
  (1 - sum p_i) A + sum p_i max(A, x_i).
- A loop of probability p repeats the longest way from its target to its source p + p^2 + ... + p^max_iterations times
  on average. Conditional edges that leave a looping hop are taken when the loop ends: they are scaled by 1 / (1 - p).
- Alternatives of a branch group that one hop starts count as a single sure way on: first_success as its earliest
  success (the shortest alternative, if no success probabilities are given), quorum as its k-th shortest, best_of as
  its longest, predicted as the mean over which alternative turns out to be the wanted one.

Orders, paths and hashes do not depend on the order of declaration; ties go by name.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b

from amf.core.graph_form import Parts, form_of, parts_of
from amf.core.graph_parts import (
    MAX_EDGES,
    MAX_HOPS,
    MAX_LOOPS,
    BranchGroup,
    Edge,
    GraphError,
    GroupKind,
    Hop,
    HopKind,
    Index,
    index_of,
)

__all__ = [
    "MAX_EDGES",
    "MAX_HOPS",
    "MAX_LOOPS",
    "BranchGroup",
    "CallGraph",
    "Edge",
    "GraphError",
    "GroupKind",
    "Hop",
    "HopKind",
    "Seconds",
    "graph_from_dict",
]

Seconds = Callable[[str], float]


@dataclass(frozen=True, kw_only=True)
class CallGraph:
    """Immutable and checked when made: raises GraphError rather than exist in a shape that makes no sense."""

    name: str
    hops: tuple[Hop, ...]
    edges: tuple[Edge, ...] = ()
    branch_groups: tuple[BranchGroup, ...] = ()

    def __post_init__(self) -> None:
        _ = self._index

    @cached_property
    def _index(self) -> Index:
        return index_of(self.hops, self.edges, self.branch_groups)

    @property
    def order(self) -> tuple[str, ...]:
        """All hops, every one after its parents; among hops that could come next, by name."""
        return self._index.order

    @property
    def by_name(self) -> Mapping[str, Hop]:
        return self._index.hops

    @property
    def loops(self) -> tuple[Edge, ...]:
        """The loop edges, by topological position of their source."""
        return self._index.loops

    @cached_property
    def _roots(self) -> tuple[str, ...]:
        return tuple(sorted(hop for hop in self._index.order if not self._index.parents[hop]))

    @property
    def roots(self) -> tuple[str, ...]:
        """Hops without parents, by name."""
        return self._roots

    def parents(self, hop: str) -> tuple[Edge, ...]:
        """Forward edges into a hop, by source. GraphError if the hop is unknown."""
        self._require(hop)
        return self._index.parents[hop]

    def children(self, hop: str) -> tuple[Edge, ...]:
        """Forward edges out of a hop, by target. GraphError if the hop is unknown."""
        self._require(hop)
        return self._index.children[hop]

    def group_of(self, hop: str) -> BranchGroup | None:
        """The branch group that has this hop among its alternatives."""
        return self._index.groups.get(hop)

    def precedes(self, ancestor: str, hop: str) -> bool:
        """Whether a forward path leads from `ancestor` to `hop`; a hop precedes itself. GraphError for unknown hops."""
        self._require(ancestor)
        self._require(hop)
        return bool(self._index.ancestors[hop] >> self._index.position[ancestor] & 1)

    def ready(self, done: Collection[str], skipped: Collection[str] = ()) -> tuple[str, ...]:
        """Hops that may start now, in topological order: every parent settled (done or skipped), one of them done.

        A hop whose parents are all skipped is skipped with them. Alternatives of a first_success or quorum group settle
        for their join as soon as enough of them are done. Names the graph does not know are ignored.
        """
        finished, dropped, ready = frozenset(done), set(skipped), []
        for hop in self._index.order:
            if hop in finished or hop in dropped:
                continue
            parents = [edge.source for edge in self._index.parents[hop]]
            if parents and all(parent in dropped for parent in parents):
                dropped.add(hop)
            elif all(parent in finished or parent in dropped or self._decided(parent, finished) for parent in parents):
                ready.append(hop)
        return tuple(ready)

    def remaining(self, seconds: Seconds) -> dict[str, float]:
        """For every hop, the expected seconds of the critical path strictly after it (rules at the top of this file).

        `seconds(hop)` is the hop's own time, including a tool or human gap before it where the caller knows of one. A
        looping hop is taken as finished for the first time. One pass over the graph, O(hops + edges) without loops.
        """
        index, own = self._index, {hop: seconds(hop) for hop in self._index.order}
        extra: dict[str, float] = {}
        for loop in index.loops:
            extra[loop.source] = extra.get(loop.source, 0.0) + _repeats(loop) * _body_s(index, loop, own, extra)
        after: dict[str, float] = {}
        for hop in reversed(index.order):
            ways = [(edge, own[edge.target] + after[edge.target]) for edge in index.children[hop]]
            after[hop] = _onward_s(index, hop, ways) + extra.get(hop, 0.0)
        return after

    def remaining_s(self, hop: str, seconds: Seconds) -> float:
        """`remaining` for one hop. GraphError if the hop is unknown."""
        self._require(hop)
        return self.remaining(seconds)[hop]

    def expected_s(self, seconds: Seconds) -> float:
        """Expected seconds of the whole pipeline on workers without queues, all roots starting at once."""
        own = {hop: seconds(hop) for hop in self._index.order}
        after = self.remaining(own.__getitem__)
        starts = [(Edge(source="", target=root), own[root] + after[root]) for root in self.roots]
        return _onward_s(self._index, "", starts)

    def critical_path(self, seconds: Seconds) -> tuple[tuple[str, ...], float]:
        """The longest chain and its seconds if every edge is taken, nothing is cancelled and no loop repeats."""
        longest: dict[str, float] = {}
        following: dict[str, str] = {}
        for hop in reversed(self._index.order):
            targets = [edge.target for edge in self._index.children[hop]]
            if targets:
                following[hop] = max(targets, key=longest.__getitem__)
            longest[hop] = seconds(hop) + (longest[following[hop]] if targets else 0.0)
        path = [max(self.roots, key=longest.__getitem__)]
        while path[-1] in following:
            path.append(following[path[-1]])
        return tuple(path), longest[path[0]]

    def subgraph_hash(self, hop: str) -> str:
        """Names what the hop's output can depend on: the hop and its ancestors (through loops too) with their pools and
        kinds, the edges and loop bounds among them and the branch groups that choose among them. Hints, probabilities
        and the graph's name are left out. Equal exactly when these agree. GraphError if the hop is unknown."""
        self._require(hop)
        index, reach, before = self._index, self._index.ancestors[hop], 0
        while reach != before:
            before = reach
            for loop in index.loops:
                if reach >> index.position[loop.target] & 1:
                    reach |= index.ancestors[loop.source]
        names = {name for name in index.order if reach >> index.position[name] & 1}
        facts: list[tuple[str, ...]] = [
            ("hop", part.name, part.pool, part.kind.value) for part in self.hops if part.name in names
        ]
        facts += [
            ("edge", edge.source, edge.target, str(edge.max_iterations))
            for edge in self.edges
            if edge.source in names and edge.target in names
        ]
        for group in self.branch_groups:
            chosen_from = sorted(hop for hop in group.alternatives if hop in names)
            if len(chosen_from) > 1:
                facts.append(("group", group.kind.value, str(group.k), *chosen_from))
        return blake2b(repr((hop, sorted(facts))).encode(), digest_size=16).hexdigest()

    def extended(self, hop: Hop, parents: Iterable[str] = ()) -> "CallGraph":
        """The graph with one more hop revealed after `parents`; for a known hop, with the missing edges added. Checks and
        indexes the new graph as a whole, O(hops + edges).

        Raises GraphError for an unknown parent, for a parent that is the hop itself or comes after it, and when the hop
        is known by another pool or kind.
        """
        known = self._index.hops.get(hop.name)
        if known and (known.pool, known.kind) != (hop.pool, hop.kind):
            raise GraphError(
                f"hop {hop.name!r} was {known.kind} on {known.pool!r} before: give the new hop its own name"
            )
        present = {edge.source for edge in self._index.parents[hop.name]} if known else set()
        edges = [Edge(source=parent, target=hop.name) for parent in dict.fromkeys(parents) if parent not in present]
        return replace(self, hops=self.hops if known else (*self.hops, hop), edges=(*self.edges, *edges))

    def to_dict(self) -> dict[str, object]:
        """The form `graph_from_dict` reads, defaults left out."""
        return form_of(Parts(name=self.name, hops=self.hops, edges=self.edges, branch_groups=self.branch_groups))

    def _require(self, hop: str) -> None:
        if hop not in self._index.position:
            raise GraphError(f"graph {self.name!r} has no hop {hop!r}; known: {', '.join(self._index.order)}")

    def _decided(self, hop: str, done: Collection[str]) -> bool:
        group = self._index.groups.get(hop)
        if group is None or group.kind not in (GroupKind.FIRST_SUCCESS, GroupKind.QUORUM):
            return False
        return sum(alternative in done for alternative in group.alternatives) >= group.k


def graph_from_dict(form: Mapping[str, object]) -> CallGraph:
    """Reads the JSON/YAML/TOML form (see `graph_form.py`). Raises GraphError, saying where and what to change."""
    parts = parts_of(form)
    return CallGraph(name=parts.name, hops=parts.hops, edges=parts.edges, branch_groups=parts.branch_groups)


def _repeats(loop: Edge) -> float:
    """Expected repetitions of a loop: the geometric series p + p^2 + ... cut at its bound."""
    p = loop.probability
    return float(loop.max_iterations) if p == 1 else p * (1 - p**loop.max_iterations) / (1 - p)


def _body_s(index: Index, loop: Edge, own: Mapping[str, float], extra: Mapping[str, float]) -> float:
    """Seconds of one repetition: the longest way from the loop's target to its source, inner loops included."""
    longest = {loop.target: own[loop.target]}
    for hop in index.order[index.position[loop.target] : index.position[loop.source]]:
        if hop in longest:
            leave = longest[hop] + extra.get(hop, 0.0)
            for edge in index.children[hop]:
                longest[edge.target] = max(longest.get(edge.target, 0.0), leave + own[edge.target])
    return longest[loop.source]


def _onward_s(index: Index, hop: str, ways: Sequence[tuple[Edge, float]]) -> float:
    """Expected seconds from the end of `hop` on, given the seconds each of its edges leads to."""
    looping = sum(loop.probability for loop in index.loops if loop.source == hop and loop.probability < 1)
    scale = 1 / (1 - looping) if looping < 1 else 1.0
    sure = 0.0
    maybe: list[tuple[float, float]] = []
    grouped: dict[str, dict[str, float]] = {}
    for edge, way_s in ways:
        group = index.groups.get(edge.target)
        if edge.probability < 1:
            maybe.append((min(1.0, edge.probability * scale), way_s))
        elif group:
            grouped.setdefault(group.name, {})[edge.target] = way_s
        else:
            sure = max(sure, way_s)
    for ways_s in grouped.values():
        sure = max(sure, _group_s(index.groups[next(iter(ways_s))], ways_s))
    rest = max(0.0, 1 - sum(p for p, _ in maybe))
    return rest * sure + sum(p * max(sure, way_s) for p, way_s in maybe)


def _group_s(group: BranchGroup, ways_s: Mapping[str, float]) -> float:
    """Expected seconds until the group decides, over those of its alternatives that were started together."""
    ranked = sorted(ways_s.values())
    if group.kind is GroupKind.BEST_OF:
        return ranked[-1]
    if group.kind is GroupKind.QUORUM:
        return ranked[min(group.k, len(ranked)) - 1]
    if not group.probabilities:
        return ranked[0] if group.kind is GroupKind.FIRST_SUCCESS else sum(ranked) / len(ranked)
    chance = dict(zip(group.alternatives, group.probabilities, strict=True))
    if group.kind is GroupKind.PREDICTED:
        total = sum(chance[hop] for hop in ways_s)
        return sum(chance[hop] * way_s for hop, way_s in ways_s.items()) / total if total else sum(ranked) / len(ranked)
    expected_s, undecided = 0.0, 1.0
    for way_s, hop in sorted((way_s, hop) for hop, way_s in ways_s.items()):
        expected_s += undecided * chance[hop] * way_s
        undecided *= 1 - chance[hop]
    return expected_s + undecided * ranked[-1]

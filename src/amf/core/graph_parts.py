"""What a call graph is made of. `index_of` checks that the parts make a graph worth asking questions of and derives the
look-ups that the questions use; the questions themselves are in `graph.py`."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from heapq import heapify, heappop, heappush
from math import isfinite
from typing import Final

MAX_HOPS: Final = 1024
MAX_EDGES: Final = 4 * MAX_HOPS
MAX_LOOPS: Final = 64
_ROUNDING: Final = 1e-9


class GraphError(ValueError):
    """The graph, or a question about it, makes no sense. The message says what to change."""


class HopKind(StrEnum):
    GENERATE = "generate"
    EMBED = "embed"
    RERANK = "rerank"
    TOOL = "tool"


class GroupKind(StrEnum):
    FIRST_SUCCESS = "first_success"
    BEST_OF = "best_of"
    QUORUM = "quorum"
    PREDICTED = "predicted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """A vertex. `prompt_tokens`, `output_tokens` and `expected_s` are hints: they are no part of the hop's identity."""

    name: str
    pool: str = ""
    kind: HopKind = HopKind.GENERATE
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    expected_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """`target` may start when `source` is done. `max_iterations` > 0: a loop edge that goes back to `target`."""

    source: str
    target: str
    probability: float = 1.0
    max_iterations: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchGroup:
    """Speculative alternatives. `k` is how many a quorum needs. `probabilities`, if given, stand beside `alternatives`:
    the chance to succeed (first_success; else certain) or to be the wanted one (predicted; else equal)."""

    name: str
    kind: GroupKind
    alternatives: tuple[str, ...]
    k: int = 1
    probabilities: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """Look-ups derived once per graph. `parents` (by source) and `children` (by target) hold forward edges only;
    `loops` the loop edges by topological position of their source. `ancestors[h]` is a bit set over positions, h
    included."""

    hops: Mapping[str, Hop]
    parents: Mapping[str, tuple[Edge, ...]]
    children: Mapping[str, tuple[Edge, ...]]
    loops: tuple[Edge, ...]
    groups: Mapping[str, BranchGroup]
    order: tuple[str, ...]
    position: Mapping[str, int]
    ancestors: Mapping[str, int]


def index_of(hops: tuple[Hop, ...], edges: tuple[Edge, ...], groups: tuple[BranchGroup, ...]) -> Index:
    """The index of a graph. Raises GraphError, saying what to change, if these parts do not make one."""
    by_name = _checked_hops(hops)
    _check_edges(edges, by_name)
    by_alternative = _checked_groups(groups, by_name)
    ranked = sorted((edge for edge in edges if not edge.max_iterations), key=lambda edge: (edge.target, edge.source))
    parents: dict[str, list[Edge]] = {name: [] for name in by_name}
    children: dict[str, list[Edge]] = {name: [] for name in by_name}
    for edge in ranked:
        parents[edge.target].append(edge)
        children[edge.source].append(edge)
    order = _ordered(parents, children)
    position = {name: place for place, name in enumerate(order)}
    ancestors: dict[str, int] = {}
    for name in order:
        ancestors[name] = 1 << position[name]
        for edge in parents[name]:
            ancestors[name] |= ancestors[edge.source]
    loops = sorted(
        (edge for edge in edges if edge.max_iterations), key=lambda edge: (position[edge.source], edge.target)
    )
    for loop in loops:
        if not ancestors[loop.source] >> position[loop.target] & 1:
            raise GraphError(f"loop edge {loop.source} -> {loop.target} does not go back: remove its loop bound")
    return Index(
        hops=by_name,
        parents={name: tuple(into) for name, into in parents.items()},
        children={name: tuple(out) for name, out in children.items()},
        loops=tuple(loops),
        groups=by_alternative,
        order=order,
        position=position,
        ancestors=ancestors,
    )


def _checked_hops(hops: tuple[Hop, ...]) -> dict[str, Hop]:
    if not hops:
        raise GraphError("the graph has no hops: declare at least one")
    if len(hops) > MAX_HOPS:
        raise GraphError(f"the graph has {len(hops)} hops, more than {MAX_HOPS}: split it into several pipelines")
    by_name: dict[str, Hop] = {}
    for hop in hops:
        if not hop.name:
            raise GraphError("a hop has an empty name: name it")
        if hop.name in by_name:
            raise GraphError(f"hop {hop.name!r} is declared twice: rename one")
        for hint, value in (("prompt", hop.prompt_tokens), ("output", hop.output_tokens), ("seconds", hop.expected_s)):
            if value is not None and not (isfinite(value) and value >= 0):
                raise GraphError(
                    f"hop {hop.name!r}: the {hint} hint is {value}: give a finite number >= 0 or leave it out"
                )
        by_name[hop.name] = hop
    return by_name


def _check_edges(edges: tuple[Edge, ...], hops: Mapping[str, Hop]) -> None:
    if len(edges) > MAX_EDGES:
        raise GraphError(f"the graph has {len(edges)} edges, more than {MAX_EDGES}: join fan-outs through a common hop")
    if sum(edge.max_iterations > 0 for edge in edges) > MAX_LOOPS:
        raise GraphError(f"the graph has more than {MAX_LOOPS} loop edges: merge some")
    seen: set[tuple[str, str]] = set()
    leaving: dict[str, float] = {}
    for edge in edges:
        label = f"edge {edge.source} -> {edge.target}"
        for end in (edge.source, edge.target):
            if end not in hops:
                raise GraphError(f"{label} names the unknown hop {end!r}: declare it or correct the name")
        if (edge.source, edge.target) in seen:
            raise GraphError(f"{label} is declared twice: remove one")
        seen.add((edge.source, edge.target))
        if not 0 <= edge.probability <= 1:
            raise GraphError(f"{label} has probability {edge.probability}: it must lie between 0 and 1")
        if edge.max_iterations < 0:
            raise GraphError(f"{label} has loop bound {edge.max_iterations}: it must be 0 (no loop) or more")
        if edge.probability < 1:
            leaving[edge.source] = leaving.get(edge.source, 0.0) + edge.probability
    for source, total in leaving.items():
        if total > 1 + _ROUNDING:
            raise GraphError(
                f"the conditional edges out of {source!r} have probabilities that sum to {total:g}, more than 1"
            )


def _checked_groups(groups: tuple[BranchGroup, ...], hops: Mapping[str, Hop]) -> dict[str, BranchGroup]:
    names: set[str] = set()
    by_alternative: dict[str, BranchGroup] = {}
    for group in groups:
        label = f"branch group {group.name!r}"
        if not group.name or group.name in names:
            raise GraphError(f"{label}: give every branch group a name of its own")
        names.add(group.name)
        if not group.alternatives:
            raise GraphError(f"{label} has no alternatives: name at least one hop")
        for hop in group.alternatives:
            if hop not in hops:
                raise GraphError(f"{label} names the unknown hop {hop!r}: declare it or correct the name")
            if hop in by_alternative:
                raise GraphError(f"{label}: hop {hop!r} is already an alternative of {by_alternative[hop].name!r}")
            by_alternative[hop] = group
        _check_numbers(group, label)
    return by_alternative


def _check_numbers(group: BranchGroup, label: str) -> None:
    most = len(group.alternatives) if group.kind is GroupKind.QUORUM else 1
    if not 1 <= group.k <= most:
        raise GraphError(f"{label} ({group.kind}) has k = {group.k}: it must lie between 1 and {most}")
    if not group.probabilities:
        return
    if group.kind not in (GroupKind.FIRST_SUCCESS, GroupKind.PREDICTED):
        raise GraphError(f"{label}: a {group.kind} group takes no probabilities")
    if len(group.probabilities) != len(group.alternatives):
        raise GraphError(
            f"{label} has {len(group.alternatives)} alternatives, {len(group.probabilities)} probabilities"
        )
    if not all(0 <= probability <= 1 for probability in group.probabilities):
        raise GraphError(f"{label}: probabilities must lie between 0 and 1")
    if group.kind is GroupKind.PREDICTED and sum(group.probabilities) > 1 + _ROUNDING:
        raise GraphError(f"{label}: only one alternative is wanted, so its probabilities must not sum to more than 1")


def _ordered(parents: Mapping[str, list[Edge]], children: Mapping[str, list[Edge]]) -> tuple[str, ...]:
    """Topological order, among hops that could come next by name. Raises GraphError naming the hops of a cycle."""
    missing = {name: len(into) for name, into in parents.items()}
    heap = [name for name, count in missing.items() if not count]
    heapify(heap)
    order: list[str] = []
    while heap:
        name = heappop(heap)
        order.append(name)
        for edge in children[name]:
            missing[edge.target] -= 1
            if not missing[edge.target]:
                heappush(heap, edge.target)
    if len(order) < len(parents):
        cycle = " -> ".join(_cycle(parents, sorted(name for name, count in missing.items() if count)))
        raise GraphError(f"the graph has a cycle: {cycle}; give the edge that goes back a loop bound or remove it")
    return tuple(order)


def _cycle(parents: Mapping[str, list[Edge]], stuck: list[str]) -> list[str]:
    """The hops of one cycle in edge order, the first repeated at the end. Every stuck hop has a stuck parent."""
    parent = {hop: next(edge.source for edge in parents[hop] if edge.source in stuck) for hop in stuck}
    hop = stuck[0]
    for _ in stuck:
        hop = parent[hop]
    cycle = [hop, parent[hop]]
    while cycle[-1] != hop:
        cycle.append(parent[cycle[-1]])
    return cycle[::-1]

"""What a built-in graph consists of, and the four models its hops run on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from amf.core.graph import BranchGroup, CallGraph, Edge, Hop, HopKind
from amf.core.types import CallKind
from amf.sim.scenario import PoolSpec
from amf.sim.workload.draft import Draft, Shape

LARGE = "llama-3.3-70b"
MEDIUM = "qwen3-32b"
SMALL = "llama-3.1-8b"
EMBED = "bge-m3"
RERANK = "bge-reranker-v2-m3"


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A graph to draw from: shapes by hop, the declared graph's edges and groups, static texts (tokens), the fleet it runs on
    unless the scenario has its own, and `draw`, which fills a Draft with one pipeline. `edges_in_turn`: the graph's edges,
    which then has no groups, where a client that never speculates would declare others."""

    name: str
    about: str
    shapes: Mapping[str, Shape]
    statics: Mapping[str, int]
    edges: tuple[Edge, ...]
    fleet: tuple[PoolSpec, ...]
    draw: Callable[[Draft], None]
    groups: tuple[BranchGroup, ...] = ()
    edges_in_turn: tuple[Edge, ...] = ()
    graph: CallGraph | None = None  # as a user declared it, tool hops included

    @property
    def pools(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(shape.pool for shape in self.shapes.values()))

    def call_graph(self) -> CallGraph:
        """The graph as a client would declare it; a built-in one has median lengths as hints."""
        return self.graph or CallGraph(name=self.name, hops=self._hops(), edges=self.edges, branch_groups=self.groups)

    def graph_in_turn(self) -> CallGraph | None:
        """As a client would declare it that never speculates; None: no differently."""
        return CallGraph(name=self.name, hops=self._hops(), edges=self.edges_in_turn) if self.edges_in_turn else None

    def _hops(self) -> tuple[Hop, ...]:
        return tuple(
            Hop(
                name=name,
                pool=shape.pool,
                kind=HopKind(CallKind(shape.kind).value),
                output_tokens=round(shape.output.median) if shape.output else None,
            )
            for name, shape in self.shapes.items()
        )


def chain(*hops: str) -> tuple[Edge, ...]:
    return tuple(Edge(source=left, target=right) for left, right in pairwise(hops))


def fan(source: str, targets: tuple[str, ...]) -> tuple[Edge, ...]:
    return tuple(Edge(source=source, target=target) for target in targets)


def join(sources: tuple[str, ...], target: str, probability: float = 1.0) -> tuple[Edge, ...]:
    return tuple(Edge(source=source, target=target, probability=probability) for source in sources)


def numbered(hop: str, count: int) -> tuple[str, ...]:
    return tuple(f"{hop}-{number}" for number in range(1, count + 1))


def fleet(**workers: int) -> tuple[PoolSpec, ...]:
    """A fleet by role: large=3, medium=3, small=2, embed=1, rerank=1; one H200 or, for encoders, one L40S a worker."""
    models = {"large": LARGE, "medium": MEDIUM, "small": SMALL, "embed": EMBED, "rerank": RERANK}
    return tuple(
        PoolSpec(model=models[role], workers=count, gpu="l40s", weights="bf16", kv="bf16")
        if role in ("embed", "rerank")
        else PoolSpec(model=models[role], workers=count)
        for role, count in workers.items()
    )

"""A user's own call graph as a workload: a YAML, TOML or JSON file in the form of `core/graph_form.py`, walked once a pipeline.

At each hop its conditional edges are drawn (they exclude each other), its loop repeats the hops between target and source,
all alternatives of a branch group run and are waited for, and a tool hop is the gap before what follows it. A hop goes on
with the thread of its first parent on the same pool and reads the other parents' answers. Lengths are lognormal around the
hop's hints, or around 1,000 tokens in, 300 out and 2 s of tool.
"""

import json
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from amf.core.graph import CallGraph, Edge, GraphError, Hop, HopKind, graph_from_dict
from amf.core.types import CallKind
from amf.sim.scenario import ScenarioError
from amf.sim.workload.draft import Draft, Reply, Shape, Thread
from amf.sim.workload.draws import LogNormal
from amf.sim.workload.template import Template

PROMPT_TOKENS, OUTPUT_TOKENS, TOOL_S = 1_000, 300, 2.0
STATIC_TOKENS = 1_000
SIGMA = 0.5
_PARSERS: dict[str, Callable[[str], Any]] = {
    ".json": json.loads,
    ".toml": tomllib.loads,
    ".yaml": yaml.safe_load,
    ".yml": yaml.safe_load,
}


def read_graph(path: Path, default_pool: str) -> Template:
    """The graph in `path`; hops without a pool run on `default_pool`. Raises ScenarioError if it makes no sense."""
    try:
        text = path.read_text(encoding="utf-8")
        graph = graph_from_dict(_PARSERS[path.suffix](text))
    except KeyError:
        raise ScenarioError(f"{path}: a call graph is a {', '.join(sorted(_PARSERS))} file") from None
    except OSError as error:
        raise ScenarioError(f"{path}: cannot be read ({error.strerror}); check [workload] graph") from error
    except (GraphError, ValueError, yaml.YAMLError) as error:
        raise ScenarioError(f"{path}: {error}") from error
    hops = tuple(hop if hop.pool or hop.kind is HopKind.TOOL else replace(hop, pool=default_pool) for hop in graph.hops)
    graph = replace(graph, hops=hops)
    if all(hop.kind is HopKind.TOOL for hop in hops):
        raise ScenarioError(f"{path}: has no hop that calls a model; give at least one of kind generate")
    return Template(
        name=graph.name,
        about=f"declared in {path.name}",
        shapes={hop.name: _shape(hop) for hop in hops if hop.kind is not HopKind.TOOL},
        statics={hop.pool: STATIC_TOKENS for hop in hops if hop.kind is not HopKind.TOOL},
        edges=graph.edges,
        fleet=(),
        draw=lambda draft: _Walk(graph, draft).run(),
        groups=graph.branch_groups,
        graph=graph,
    )


def _shape(hop: Hop, tool_s: float = 0.0) -> Shape:
    encoder = hop.kind is not HopKind.GENERATE
    return Shape(
        pool=hop.pool,
        static=hop.pool,
        own=LogNormal(hop.prompt_tokens or PROMPT_TOKENS, SIGMA, low=1),
        output=None if encoder else LogNormal(hop.output_tokens or OUTPUT_TOKENS, SIGMA, low=1),
        gap=LogNormal(tool_s, SIGMA) if tool_s else None,
        kind=CallKind(hop.kind.value),
    )


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a hop left for its children: the replies they wait for and read, and tool seconds to let pass."""

    replies: tuple[Reply, ...]
    tool_s: float = 0.0


class _Walk:
    """One pipeline's way through the graph."""

    def __init__(self, graph: CallGraph, draft: Draft) -> None:
        self._graph = graph
        self._draft = draft
        self._done: dict[str, _Outcome] = {}
        self._taken: dict[tuple[str, str], bool] = {}
        self._pools: dict[int, str] = {}

    def run(self) -> None:
        for name in self._graph.order:
            edges = self._graph.parents(name)
            causes = [each.source for each in edges if self._taken.get((each.source, name))]
            if edges and not causes:
                continue
            self._execute(name, causes)
            for loop in self._graph.loops:
                if loop.source == name:
                    self._repeat(loop)
            self._choose(name)

    def _execute(self, name: str, causes: list[str]) -> None:
        hop = self._graph.by_name[name]
        outcomes = [self._done[cause] for cause in causes]
        replies = tuple({reply.index: reply for outcome in outcomes for reply in outcome.replies}.values())
        tool_s = max((outcome.tool_s for outcome in outcomes), default=0.0)
        if hop.kind is HopKind.TOOL:
            self._done[name] = _Outcome(replies, tool_s + (hop.expected_s or TOOL_S))
            return
        reply = self._draft.ask(name, _shape(hop, tool_s), self._thread(hop.pool, replies), replies)
        self._pools[reply.index] = hop.pool
        self._done[name] = _Outcome((reply,))

    def _thread(self, pool: str, replies: tuple[Reply, ...]) -> Thread:
        own = next((reply for reply in replies if self._pools[reply.index] == pool), None)
        thread = own.thread if own else self._draft.thread(pool)
        return thread.read(*(reply.text for reply in replies if reply is not own))

    def _repeat(self, loop: Edge) -> None:
        body = [
            name
            for name in self._graph.order
            if name in self._done
            and self._graph.precedes(loop.target, name)
            and self._graph.precedes(name, loop.source)
        ]
        for _ in range(loop.max_iterations):
            if not self._draft.chance(loop.probability):
                return
            for name in body:
                inside = [each.source for each in self._graph.parents(name) if each.source in body]
                self._execute(name, [loop.source] if name == loop.target else inside)

    def _choose(self, name: str) -> None:
        """Decide which edges out of a finished hop are taken: all sure ones, at most one conditional one."""
        looping = sum(loop.probability for loop in self._graph.loops if loop.source == name and loop.probability < 1)
        point = self._draft.rng.random() * (1 - looping)
        for edge in self._graph.children(name):
            if edge.probability >= 1:
                self._taken[name, edge.target] = True
                continue
            self._taken[name, edge.target] = 0 <= point < edge.probability
            point -= edge.probability

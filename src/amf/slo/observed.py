"""Hop times to compose: of pipelines drawn from a graph and priced by the cost model, or of pipelines that were recorded.

Drawn: each call alone on the fastest worker of its pool, with caches that never evict and no queue. Recorded: from a call's
arrival at the gateway to its end, so with the waiting of that time. Either way a hop's seconds include the gap before it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from glob import has_magic
from math import log
from pathlib import Path
from random import Random
from statistics import pstdev

from amf.core.graph import CallGraph
from amf.core.path import Correlation, HopTime, Samples, score
from amf.sim.in_turn import in_turn
from amf.sim.scenario import PoolSpec, ScenarioError, pool_workers
from amf.sim.workload.declared import read_graph
from amf.sim.workload.graphs import GRAPHS, built_in, draw_graph
from amf.sim.workload.recorded import read_recording
from amf.sim.workload.template import LARGE, Template
from amf.sim.workload.timing import calls_alone_s, fastest_profiles
from amf.sim.workload.traffic import ObservedPipeline

GRAPH_SUFFIXES = (".yaml", ".yml", ".toml", ".json")
_THINK_CAP_S = 300.0


@dataclass(frozen=True, slots=True)
class Took:
    """One call: `seconds` with the gap before it, after the calls at the indices `parents`."""

    hop: str
    seconds: float
    parents: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """`fleet`: what pipelines were drawn for; none if they were recorded."""

    graph: CallGraph
    source: str
    pipelines: Sequence[Sequence[Took]]
    fleet: tuple[PoolSpec, ...] = ()
    notes: tuple[str, ...] = ()

    def seconds(self) -> dict[str, list[float]]:
        """By hop, those of all its calls."""
        by_hop: dict[str, list[float]] = {hop: [] for hop in self.graph.order}
        for calls in self.pipelines:
            for call in calls:
                by_hop[call.hop].append(call.seconds)
        return by_hop

    def times(self) -> dict[str, HopTime]:
        """A hop that was never called takes no time."""
        return {hop: HopTime(Samples(seconds or [0.0]).quantile) for hop, seconds in self.seconds().items()}

    def totals(self) -> Samples:
        """End to end, as the calls followed each other."""
        return Samples([_end_s(calls) for calls in self.pipelines])

    def correlation(self) -> Correlation:
        seen, by_hop = Correlation(), self.seconds()
        medians = {hop: Samples(seconds).quantile(0.5) for hop, seconds in by_hop.items() if seconds}
        sigmas = {hop: pstdev([log(s) for s in seconds if s > 0] or [0.0]) for hop, seconds in by_hop.items()}
        for calls in self.pipelines:
            seen.observe([score(call.seconds, medians[call.hop], sigmas[call.hop]) for call in calls])
        return seen


def template_of(name: str) -> tuple[Template, tuple[PoolSpec, ...]]:
    """A built-in graph, or one in a file, and the fleet it is priced on: its own, or one H200 for each pool it names. Raises
    ScenarioError if there is no such graph."""
    if Path(name).suffix not in GRAPH_SUFFIXES:
        template = built_in(name)
        return template, template.fleet
    if not Path(name).exists():
        raise ScenarioError(f"{name}: does not exist; give a graph file or the name of a built-in graph")
    template = read_graph(Path(name), LARGE)
    return template, tuple(PoolSpec(model=pool) for pool in template.pools)


def drawn(name: str, count: int, seed: int) -> Observed:
    """`count` pipelines of a graph, which do one thing after the other. Raises ScenarioError if there is no such graph, or a
    pool is no known model."""
    template, fleet = template_of(name)
    profiles = fastest_profiles(pool_workers(fleet))
    plans = [in_turn(plan) for plan in draw_graph(template, count, 1.0, Random(f"pipelines/{seed}"))]
    pipelines = [
        [
            Took(call.hop, call.gap_s + alone_s, call.parents)
            for call, alone_s in zip(plan.calls, calls_alone_s(plan, profiles), strict=True)
        ]
        for plan in plans
    ]
    where = ", ".join(f"{pool.model} on {pool.tensor_parallel} {pool.gpu}" for pool in fleet)
    source = f"{count} pipelines drawn, each call alone by the cost model: {where}"
    graph = template.graph_in_turn() or template.call_graph()
    return _checked(Observed(graph=graph, source=source, pipelines=pipelines, fleet=fleet))


def recorded(path: Path, graph_name: str | None) -> Observed:
    """The recorded pipelines of one graph: the named one, or else the only one recorded, if it is built in. Raises
    ScenarioError if the recording cannot be read or has no such pipelines."""
    if not path.exists() and not has_magic(str(path)):
        raise ScenarioError(f"{path}: does not exist; give a file written by amf serve --record")
    traffic = read_recording(path, None, _THINK_CAP_S)
    names = Counter(pipeline.graph for pipeline in traffic.pipelines)
    if graph_name is None:
        graph_name = _only(path, names)
    graph = template_of(graph_name)[0].call_graph()
    mine = [pipeline for pipeline in traffic.pipelines if pipeline.graph == graph.name]
    if not mine:
        raise ScenarioError(f"{path}: has no pipeline of graph {graph.name!r}; it has those of {_told(names)}")
    known = [pipeline for pipeline in mine if all(call.hop in graph.by_name for call in pipeline.calls)]
    if not known:
        strange = next(call.hop for call in mine[0].calls if call.hop not in graph.by_name)
        raise ScenarioError(
            f"{path}: calls a hop {strange!r} that graph {graph.name!r} does not have; declare it there"
        )
    notes = [*traffic.notes, "recorded times hold the queues of that time; a pipeline that broke off counts as it is"]
    if len(known) < len(mine):
        notes.append(f"{len(mine) - len(known)} pipelines with hops that the graph does not have are left out")
    pipelines = [_as_recorded(pipeline) for pipeline in known]
    source = f"{len(pipelines)} pipelines recorded by amf serve --record in {path}"
    return _checked(Observed(graph=graph, source=source, pipelines=pipelines, notes=tuple(notes)))


def _as_recorded(pipeline: ObservedPipeline) -> list[Took]:
    return [Took(call.hop, call.gap_s + call.took_s, call.parents) for call in pipeline.calls]


def _checked(observed: Observed) -> Observed:
    never = [hop for hop, seconds in observed.seconds().items() if not seconds]
    if not never:
        return observed
    note = f"never called, and counted as no time: {', '.join(never)}"
    return replace(observed, notes=(*observed.notes, note))


def _only(path: Path, names: Counter[str]) -> str:
    if len(names) > 1 or not any(names):
        raise ScenarioError(
            f"{path}: has pipelines of {_told(names)}; say with --graph which built-in graph or graph file they follow"
        )
    (name,) = names
    if name not in GRAPHS:
        raise ScenarioError(f"{path}: graph {name!r} is not built in; give the file that declares it with --graph")
    return name


def _told(names: Counter[str]) -> str:
    return ", ".join(f"{name or 'no graph'} ({count})" for name, count in names.most_common(5))


def _end_s(calls: Sequence[Took]) -> float:
    ends_s: list[float] = []
    for call in calls:
        ends_s.append(max((ends_s[parent] for parent in call.parents), default=0.0) + call.seconds)
    return max(ends_s)

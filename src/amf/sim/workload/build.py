"""A scenario's [workload] becomes pipelines: drawn or read, checked against the fleet, given arrivals and deadlines."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from amf.core.graph import CallGraph
from amf.core.types import Worker
from amf.sim.plan import PipelinePlan, Workload
from amf.sim.scenario import PoolSpec, Scenario, ScenarioError, WorkloadSpec, pool_worker
from amf.sim.workload.arrivals import arrival_times
from amf.sim.workload.azure import lengths_pipeline, read_lengths
from amf.sim.workload.chat import draw_requests
from amf.sim.workload.claude_code import draw_pipelines, read_sessions
from amf.sim.workload.declared import read_graph
from amf.sim.workload.graphs import built_in, draw_graph
from amf.sim.workload.ideal import ideal_cached_by_call
from amf.sim.workload.mooncake import read_requests, request_pipeline
from amf.sim.workload.sessions import draw_session
from amf.sim.workload.template import Template
from amf.sim.workload.timing import saturation_rate_per_s, standalone_s


@dataclass(frozen=True, slots=True)
class _Drawn:
    name: str
    pipelines: tuple[PipelinePlan, ...]
    notes: tuple[str, ...] = ()
    graphs: tuple[CallGraph, ...] = ()


def fleet_of(scenario: Scenario) -> tuple[PoolSpec, ...]:
    """The scenario's pools or, for kind graph, the graph's default fleet. Raises ScenarioError if there is neither."""
    if scenario.pools:
        return scenario.pools
    if scenario.workload.kind == "graph" and not Path(scenario.workload.graph or "").suffix:
        return built_in(scenario.workload.graph or "").fleet
    raise ScenarioError(f'{scenario.name}: has no [[pool]]; add one, for example model = "llama-3.3-70b"')


def build(spec: WorkloadSpec, pools: Sequence[PoolSpec], seed: int | None = None) -> Workload:
    """The workload of `spec` on the fleet `pools`. `seed` replaces the spec's. Same arguments, same workload.

    Raises ScenarioError if a recording cannot be read or the pools do not fit the workload."""
    if not pools:
        raise ScenarioError("a workload needs at least one pool")
    seed = spec.seed if seed is None else seed
    fleet = tuple(pool_worker(pool, index) for pool in pools for index in range(pool.workers))
    drawn = _KINDS[spec.kind](spec, fleet, Random(f"pipelines/{seed}"))
    _check_fit(drawn.pipelines, fleet)
    pipelines = _with_deadlines(spec, drawn.pipelines, fleet)
    workload = Workload(
        name=drawn.name,
        pipelines=pipelines,
        concurrency=spec.concurrency,
        seed=seed,
        graphs=drawn.graphs,
        notes=drawn.notes,
    )
    return _with_arrivals(spec, workload, fleet, Random(f"arrivals/{seed}"))


def _template(spec: WorkloadSpec, default_pool: str) -> Template:
    name = spec.graph or ""
    return read_graph(Path(name), default_pool) if Path(name).suffix else built_in(name)


def _claude_code(spec: WorkloadSpec, fleet: Sequence[Worker], rng: Random) -> _Drawn:
    sessions = read_sessions(_path(spec), spec.think_cap_s)
    kept = [each for each in sessions if each.largest_call_tokens <= _room(fleet)]
    notes = [f"recorded Claude Code sessions; think gaps capped at {spec.think_cap_s:g} s, tool gaps as recorded"]
    notes += _left_out(len(sessions) - len(kept), len(sessions), "sessions", fleet)
    if not kept:
        raise ScenarioError(f"{spec.path}: no session fits in {_room(fleet)} KV tokens; raise [[pool]] kv_tokens")
    if spec.pipelines > len(kept):
        notes.append(f"{len(kept)} sessions, repeated with fresh content")
    pools = tuple(dict.fromkeys(worker.pool for worker in fleet))
    return _Drawn("claude-code", draw_pipelines(kept, spec.pipelines, pools, rng), tuple(notes))


def _mooncake(spec: WorkloadSpec, fleet: Sequence[Worker], rng: Random) -> _Drawn:
    requests = read_requests(_path(spec))
    kept = [each for each in requests if each.total_tokens <= _room(fleet)]
    notes = ["recorded Mooncake requests, each a pipeline of one call"]
    notes += _left_out(len(requests) - len(kept), len(requests), "requests", fleet)
    plans = tuple(request_pipeline(each, i, fleet[0].pool) for i, each in enumerate(kept[: spec.pipelines]))
    return _Drawn("mooncake", plans, (*notes, *_fewer(plans, spec)))


def _azure(spec: WorkloadSpec, fleet: Sequence[Worker], rng: Random) -> _Drawn:
    requests = read_lengths(_path(spec))
    kept = [each for each in requests if each.total_tokens <= _room(fleet)]
    notes = ["recorded Azure LLM requests: times and lengths; nothing is shared"]
    notes += _left_out(len(requests) - len(kept), len(requests), "requests", fleet)
    plans = tuple(lengths_pipeline(each, i, fleet[0].pool) for i, each in enumerate(kept[: spec.pipelines]))
    return _Drawn("azure", plans, (*notes, *_fewer(plans, spec)))


def _coding_sessions(spec: WorkloadSpec, fleet: Sequence[Worker], rng: Random) -> _Drawn:
    plans = tuple(
        draw_session(number, fleet[0].pool, spec.think_cap_s, spec.scale_tokens, Random(rng.getrandbits(64)))
        for number in range(spec.pipelines)
    )
    note = f"SYNTHETIC coding sessions fitted to published statistics; think gaps capped at {spec.think_cap_s:g} s"
    return _Drawn("coding-sessions", plans, (note, *_scaled(spec)))


def _chat_requests(spec: WorkloadSpec, fleet: Sequence[Worker], rng: Random) -> _Drawn:
    plans = draw_requests(spec.pipelines, fleet[0].pool, spec.scale_tokens, rng)
    note = "SYNTHETIC chat requests fitted to published statistics, each a pipeline of one call"
    return _Drawn("chat-requests", plans, (note, *_scaled(spec)))


def _graph(spec: WorkloadSpec, fleet: Sequence[Worker], rng: Random) -> _Drawn:
    template = _template(spec, fleet[0].pool)
    missing = [pool for pool in template.pools if all(worker.pool != pool for worker in fleet)]
    if missing:
        raise ScenarioError(
            f"graph {template.name} also calls {', '.join(missing)}; add a [[pool]] for each, or remove all "
            "[[pool]] tables to run a built-in graph on its own fleet"
        )
    plans = draw_graph(template, spec.pipelines, spec.scale_tokens, rng)
    notes = (f"SYNTHETIC pipelines: {template.about}", *_scaled(spec))
    return _Drawn(template.name, plans, notes, (template.call_graph(),))


_KINDS: dict[str, Callable[[WorkloadSpec, Sequence[Worker], Random], _Drawn]] = {
    "claude-code": _claude_code,
    "mooncake": _mooncake,
    "azure": _azure,
    "coding-sessions": _coding_sessions,
    "chat-requests": _chat_requests,
    "graph": _graph,
}


def _path(spec: WorkloadSpec) -> Path:
    if spec.path is None:
        raise ScenarioError(f'kind = "{spec.kind}" needs the path of a recording')
    return spec.path


def _room(fleet: Sequence[Worker]) -> int:
    """Tokens of one call that every worker can hold."""
    return min(worker.kv_tokens for worker in fleet)


def _left_out(count: int, total: int, what: str, fleet: Sequence[Worker]) -> list[str]:
    return [f"{count} of {total} {what} left out: longer than {_room(fleet)} KV tokens"] if count else []


def _fewer(plans: Sequence[PipelinePlan], spec: WorkloadSpec) -> list[str]:
    if not plans:
        raise ScenarioError(f"{spec.path}: no request fits in a worker's KV memory; raise [[pool]] kv_tokens")
    return [f"the recording has {len(plans)} of the {spec.pipelines} asked for"] if len(plans) < spec.pipelines else []


def _scaled(spec: WorkloadSpec) -> list[str]:
    return [f"contexts scaled x{spec.scale_tokens:g}"] if spec.scale_tokens != 1 else []


def _check_fit(pipelines: Sequence[PipelinePlan], fleet: Sequence[Worker]) -> None:
    room = {worker.pool: worker.kv_tokens for worker in fleet}
    for pipeline in pipelines:
        for call in pipeline.calls:
            need = call.prompt.total_tokens + call.output_tokens
            if need > room[call.pool]:
                raise ScenarioError(
                    f"{pipeline.pipeline_id}: hop {call.hop} needs {need} tokens, a worker of {call.pool} holds "
                    f"{room[call.pool]}; raise its kv_tokens or lower [workload] scale_tokens"
                )


def _with_deadlines(
    spec: WorkloadSpec, pipelines: Sequence[PipelinePlan], fleet: Sequence[Worker]
) -> tuple[PipelinePlan, ...]:
    profiles = {worker.pool: worker.profile for worker in fleet}
    plans: list[PipelinePlan] = []
    for pipeline in pipelines:
        alone_s = standalone_s(pipeline, profiles)
        slo_s = spec.slo_s if spec.slo_stretch is None else spec.slo_stretch * alone_s
        plans.append(replace(pipeline, standalone_s=alone_s, slo_s=slo_s))
    return tuple(plans)


def _with_arrivals(spec: WorkloadSpec, workload: Workload, fleet: Sequence[Worker], rng: Random) -> Workload:
    if spec.arrival == "trace":
        return workload
    if spec.rate_per_s is None and spec.load is None:
        times: Sequence[float | None] = [None] * len(workload.pipelines)
    else:
        rate_per_s = spec.rate_per_s
        if rate_per_s is None:
            saturation = saturation_rate_per_s(workload, fleet, ideal_cached_by_call(workload))
            rate_per_s = (spec.load or 0.0) * saturation
            note = f"load {spec.load:g} of an estimated {saturation:.4g} pipelines/s"
            workload = replace(workload, notes=(*workload.notes, note))
        times = arrival_times(spec.arrival, len(workload.pipelines), rate_per_s, spec.cv, rng)
    plans = tuple(replace(pipeline, arrival_s=at_s) for pipeline, at_s in zip(workload.pipelines, times, strict=True))
    return replace(workload, pipelines=plans)

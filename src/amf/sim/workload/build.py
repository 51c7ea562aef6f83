"""A scenario's [workload] becomes pipelines: drawn or read, checked against the fleet, given arrivals and deadlines. Those of
pipelines that speculate are reckoned as if they did one thing after the other."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

from amf.core.types import Worker
from amf.sim.in_turn import in_turn, workload_in_turn
from amf.sim.plan import PipelinePlan, Workload
from amf.sim.scenario import PoolSpec, Scenario, ScenarioError, WorkloadSpec, pool_workers
from amf.sim.scenario_spec import DEFAULT_SLO_STRETCH, Stretch
from amf.sim.workload.arrivals import arrival_times
from amf.sim.workload.draws import LogUniform
from amf.sim.workload.graphs import built_in
from amf.sim.workload.ideal import ideal_cached_by_call
from amf.sim.workload.kinds import Drawn, Order, draw
from amf.sim.workload.mix import MIX_BLOCK_TOKENS, blended, parts_of
from amf.sim.workload.timing import fastest_profiles, saturation_rate_per_s, standalone_s


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
    fleet = pool_workers(pools)
    rng = Random(f"pipelines/{seed}")
    stretches = Random(f"stretches/{seed}")
    drawn = _mixed(spec, fleet, rng, stretches) if spec.mix else _drawn(Order(spec, fleet, rng), stretches)
    workload = Workload(
        name=drawn.name,
        pipelines=drawn.pipelines,
        concurrency=spec.concurrency,
        seed=seed,
        graphs=drawn.graphs,
        graphs_in_turn=drawn.graphs_in_turn,
        notes=drawn.notes,
    )
    return _with_arrivals(spec, workload, fleet, Random(f"arrivals/{seed}"))


def _drawn(order: Order, stretches: Random) -> Drawn:
    drawn = draw(order)
    _check_fit(drawn.pipelines, order.fleet)
    return replace(drawn, pipelines=_with_deadlines(order.spec, drawn.pipelines, order.fleet, stretches))


def _mixed(spec: WorkloadSpec, fleet: Sequence[Worker], rng: Random, stretches: Random) -> Drawn:
    parts = parts_of(spec, rng)
    orders = [Order(part.spec, fleet, Random(rng.getrandbits(64)), MIX_BLOCK_TOKENS) for part in parts]
    return blended(parts, [_drawn(order, stretches) for order in orders])


def _check_fit(pipelines: Sequence[PipelinePlan], fleet: Sequence[Worker]) -> None:
    room: dict[str, int] = {}
    for worker in fleet:
        room[worker.pool] = min(worker.kv_tokens, room.get(worker.pool, worker.kv_tokens))
    for pipeline in pipelines:
        for call in pipeline.calls:
            need = call.prompt.total_tokens + call.output_tokens
            if need > room[call.pool]:
                raise ScenarioError(
                    f"{pipeline.pipeline_id}: hop {call.hop} needs {need} tokens, a worker of {call.pool} holds "
                    f"{room[call.pool]}; raise its kv_tokens or lower [workload] scale_tokens"
                )


def _with_deadlines(
    spec: WorkloadSpec, pipelines: Sequence[PipelinePlan], fleet: Sequence[Worker], stretches: Random
) -> tuple[PipelinePlan, ...]:
    """What the scenario says, else what the recording says, else the default stretch. `stretches` has a stream of its own,
    so that pipelines are the same whatever their deadlines."""
    profiles = fastest_profiles(fleet)
    plans: list[PipelinePlan] = []
    for pipeline in pipelines:
        alone_s = standalone_s(in_turn(pipeline), profiles)
        slo_s = spec.slo_s
        if slo_s is None and spec.slo_stretch is not None:
            slo_s = _stretch(spec.slo_stretch, stretches) * alone_s
        if slo_s is None:
            slo_s = DEFAULT_SLO_STRETCH * alone_s if pipeline.slo_s is None else pipeline.slo_s
        plans.append(replace(pipeline, standalone_s=alone_s, slo_s=slo_s))
    return tuple(plans)


def _stretch(stretch: Stretch, rng: Random) -> float:
    return LogUniform(*stretch).draw(rng) if isinstance(stretch, tuple) else stretch


def _with_arrivals(spec: WorkloadSpec, workload: Workload, fleet: Sequence[Worker], rng: Random) -> Workload:
    if spec.arrival == "trace":
        return workload
    if spec.rate_per_s is None and spec.load is None:
        times: Sequence[float | None] = [None] * len(workload.pipelines)
    else:
        rate_per_s = spec.rate_per_s
        if rate_per_s is None:
            plain = workload_in_turn(workload)
            saturation = saturation_rate_per_s(plain, fleet, ideal_cached_by_call(plain))
            rate_per_s = (spec.load or 0.0) * saturation
            note = f"load {spec.load:g} of an estimated {saturation:.4g} pipelines/s"
            workload = replace(workload, notes=(*workload.notes, note))
        times = arrival_times(spec.arrival, len(workload.pipelines), rate_per_s, spec.cv, rng)
    plans = tuple(replace(pipeline, arrival_s=at_s) for pipeline, at_s in zip(workload.pipelines, times, strict=True))
    return replace(workload, pipelines=plans)

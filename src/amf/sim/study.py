"""A scenario as a study: every policy on every seed, each a run of its own that needs nothing of the others.

Under one seed all policies meet the same pipelines, the same arrivals and the same outages, so that their reports may be
compared in pairs. Workers publish KV events (the fabric learns what they store and evict, as late and as incompletely as
the faults make it) unless their pool says otherwise; their blocks are as long as the plan's. There is no clock in here, so
`decision_us` stays null: one seed gives one report, to the byte, on whatever machine.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from random import Random
from statistics import fmean

from amf.core.config import FabricConfig
from amf.core.decisions import Decision, Dispatch
from amf.core.events import CallArrived, Event
from amf.core.fabric import Fabric
from amf.core.policy.bundles import BUNDLES, policies_named
from amf.core.policy.interface import Policies
from amf.core.state.profiles import Profiles
from amf.core.types import Worker
from amf.sim.calibration import Calibration
from amf.sim.in_turn import workload_in_turn
from amf.sim.loop import Faults, Outage, Simulation
from amf.sim.misled import Misled
from amf.sim.optimum import Bounds, belady_hit_ratio, bounds_of
from amf.sim.oracle import Oracle
from amf.sim.plan import Workload
from amf.sim.report import Report, ReportContext, RunRecords, served_order, summarise
from amf.sim.reuse import note_reuse
from amf.sim.scenario import FaultSpec, RunSpec, Scenario, ScenarioError, pool_workers
from amf.sim.workload import build, fleet_of, ideal_cached_by_call

# Told now and then how many of the run's calls have arrived, of how many. What it raises ends the run.
Watch = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`policy` is what reports call it. `bundle`: the choices, where they are not those of the bundle of that name.
    `config`: keys of FabricConfig that are set otherwise than by default, on top of the scenario's [fabric].
    `error_sigma`: how wrong every prediction about one call is (`sim/misled.py`). `calibrated`: hold what the fabric states of
    remaining paths against what they took (`sim/calibration.py`); the report then has `calibration`. `speculation`: how clients
    play pipelines with groups and guesses, where it is not as the scenario says."""

    policy: str
    seed: int
    bundle: Policies | None = None
    config: tuple[tuple[str, float], ...] = ()
    error_sigma: float = 0.0
    calibrated: bool = False
    speculation: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A case as it went; `workload` is what was played. The report has `call_imbalance` and `notes` beside the fields of
    `sim/report.py`."""

    report: Report
    workload: Workload
    records: RunRecords


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """What the cases of one seed share; in the second form, for clients that do not speculate."""

    workload: Workload
    ideal_cached: Mapping[tuple[str, int], int]
    in_turn: Workload
    ideal_in_turn: Mapping[tuple[str, int], int]
    workers: tuple[Worker, ...]
    faults: Faults
    bounds: Bounds


class _Watched(Fabric):
    """A fabric whose arriving calls are counted, and its statements noted if `calibration` is set."""

    def __init__(self, config: FabricConfig, profiles: Profiles, policies: Policies, watch: Watch, total: int) -> None:
        super().__init__(config, policies, profiles)
        self._watch = watch
        self._arrived = 0
        self._total = total
        self.calibration: Calibration | None = None

    def handle(self, event: Event) -> list[Decision]:
        if isinstance(event, CallArrived):
            self._arrived += 1
            self._watch(self._arrived, self._total)
        decisions = super().handle(event)
        if self.calibration is not None:
            for decision in decisions:
                if isinstance(decision, Dispatch):
                    self.calibration.dispatched(self, decision, event.at_s)
        return decisions


def cases_of(policies: Sequence[str], seeds: Sequence[int], where: str) -> list[Case]:
    """Every policy on every seed: seed by seed, policies in the order given. Raises ScenarioError, with `where` the names
    stood, if one is unknown or there is none."""
    for name in policies:
        if name not in BUNDLES:
            near = get_close_matches(name, BUNDLES, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(BUNDLES)}"
            raise ScenarioError(f"{where}: unknown policy {name!r}; {hint}")
    if not policies:
        raise ScenarioError(f"{where}: names no policy; choose from {', '.join(BUNDLES)}")
    return [Case(policy=policy, seed=seed) for seed in seeds for policy in dict.fromkeys(policies)]


def play(scenario: Scenario, case: Case, watch: Watch) -> Outcome:
    """Run one case to its end. Raises ScenarioError if the workload cannot be built."""
    prepared = _prepared(replace(scenario, fabric=(), run=RunSpec()), case.seed)
    way = case.speculation or scenario.run.speculation
    workload, ideal_cached = prepared.workload, prepared.ideal_cached
    if way == "off":
        workload, ideal_cached = prepared.in_turn, prepared.ideal_in_turn
    calls = sum(len(plan.calls) for plan in workload.pipelines)
    config = replace(FabricConfig(), **dict((*scenario.fabric, *case.config)))
    policies = case.bundle or policies_named(case.policy)
    profiles = profiles_for(policies, config, workload, prepared.workers)
    if case.error_sigma:
        profiles = Misled(profiles, case.error_sigma, case.seed)
    fabric = _Watched(config, profiles, policies, watch, calls)
    fabric.calibration = Calibration(config, profiles) if case.calibrated else None
    simulation = Simulation(fabric, prepared.workers, workload, prepared.faults, managed=way == "managed")
    records = simulation.run()
    note_reuse(workload, records)
    speculates = any(plan.speculates for plan in workload.pipelines)
    hits = None if speculates else belady_hit_ratio(workload, prepared.workers, served_order(records))
    context = replace(
        _context(scenario, case, prepared, simulation.now_s),
        ideal_cached=ideal_cached,
        bounds=replace(prepared.bounds, belady_hit_ratio=hits),
    )
    report = summarise(records, context)
    notes = [*workload.notes, *_without_effect(scenario.faults, policies)]
    beyond: Report = {"call_imbalance": _call_imbalance(records, prepared.workers), "notes": notes}
    if fabric.calibration is not None:
        beyond["calibration"] = fabric.calibration.report(workload, records)
    return Outcome(report={**report, **beyond}, workload=workload, records=records)


def profiles_for(policies: Policies, config: FabricConfig, workload: Workload, workers: Sequence[Worker]) -> Profiles:
    """What the policies of a run ask for predictions: what they have learned, or the plan itself."""
    return Oracle(config, workload, workers) if policies.clairvoyant else Profiles(config)


def faults_of(spec: FaultSpec, workload: Workload, workers: Sequence[Worker]) -> Faults:
    """[faults] for one workload. Every worker is lost at times of its own, drawn from the workload's seed: the time from
    its return to its next loss is exponential. The draw reaches as far as the pipelines would take one after another."""
    horizon_s = max((plan.arrival_s or 0.0 for plan in workload.pipelines), default=0.0)
    horizon_s += sum(plan.standalone_s or 0.0 for plan in workload.pipelines)
    outages: list[Outage] = []
    if spec.worker_loss_per_h:
        for worker in workers:
            rng = Random(f"outages/{workload.seed}/{worker.name}")
            at_s = rng.expovariate(spec.worker_loss_per_h / 3600)
            while at_s < horizon_s:
                outages.append(Outage(worker=worker.name, at_s=at_s))
                at_s += outages[-1].down_s + rng.expovariate(spec.worker_loss_per_h / 3600)
    return Faults(
        event_loss=spec.event_loss,
        event_delay_s=spec.event_delay_s,
        metrics_staleness_s=spec.metrics_staleness_s,
        outages=tuple(outages),
        slow={workers[0].name: spec.slow_worker} if spec.slow_worker != 1 else {},
    )


@lru_cache(maxsize=1)
def _prepared(scenario: Scenario, seed: int) -> _Prepared:
    pools = fleet_of(scenario)
    workload = build(scenario.workload, pools, seed)
    block_tokens = workload.pipelines[0].calls[0].prompt.block_tokens
    workers = tuple(replace(worker, block_tokens=block_tokens) for worker in pool_workers(pools))
    in_turn, ideal_cached = workload_in_turn(workload), ideal_cached_by_call(workload)
    return _Prepared(
        workload=workload,
        ideal_cached=ideal_cached,
        in_turn=in_turn,
        ideal_in_turn=ideal_cached if in_turn is workload else ideal_cached_by_call(in_turn),
        workers=workers,
        faults=faults_of(scenario.faults, workload, workers),
        bounds=bounds_of(workload, workers),
    )


def _context(scenario: Scenario, case: Case, prepared: _Prepared, duration_s: float) -> ReportContext:
    pools = fleet_of(scenario)
    return ReportContext(
        policy=case.policy,
        workload=prepared.workload.name,
        seed=case.seed,
        duration_s=duration_s,
        gpus=sum(pool.workers * pool.tensor_parallel for pool in pools),
        dollars_per_hour=sum(worker.profile.dollars_per_hour for worker in prepared.workers),
        kv_bytes_per_token={worker.pool: worker.profile.kv_bytes_per_token for worker in prepared.workers},
    )


def _call_imbalance(records: RunRecords, workers: Sequence[Worker]) -> float | None:
    """Answered calls of the busiest worker over the mean of its pool's workers, in the most uneven pool: 1 is even."""
    served = Counter(call.worker for call in records.calls if call.status == "ok")
    pools: dict[str, list[int]] = {}
    for worker in workers:
        pools.setdefault(worker.pool, []).append(served[worker.name])
    return max((max(counts) / fmean(counts) for counts in pools.values() if any(counts)), default=None)


def _without_effect(faults: FaultSpec, policies: Policies) -> list[str]:
    if not faults.metrics_staleness_s or policies.reads_reports:
        return []
    return ["[faults] metrics_staleness_s has no effect on policies that count their own calls"]

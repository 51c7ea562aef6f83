"""The fabric and simulated workers in virtual time: whole workloads, with and without faults, on several seeds."""

from dataclasses import replace

import pytest

from amf.core.config import FabricConfig
from amf.core.events import Event, WorkerReported
from amf.core.fabric import Fabric
from amf.core.journal import decision_to_dict, event_from_dict, event_to_dict
from amf.core.policy.bundles import BUNDLES, policies_named
from amf.core.types import Tier, Worker
from amf.sim.loop import Faults, Outage, Simulation
from amf.sim.plan import Workload
from amf.sim.scenario import pool_worker, scenario_from_dict
from amf.sim.study import profiles_for
from amf.sim.worker import SimWorker
from amf.sim.workload import build, fleet_of

GRAPH = {"kind": "graph", "graph": "coding-7hop", "pipelines": 8, "concurrency": 4, "scale_tokens": 0.1}
SESSIONS = {"kind": "coding-sessions", "pipelines": 6, "concurrency": 6, "scale_tokens": 0.05, "think_cap_s": 60}
SESSIONS_FLEET = [{"model": "llama-3.1-8b", "workers": 3, "kv_tokens": 30_000}]


class Checked(Fabric):
    """A fabric that checks its invariants after every event and keeps its journal."""

    def __init__(self, policy: str, workload: Workload, workers: list[Worker]) -> None:
        policies = policies_named(policy)
        super().__init__(FabricConfig(), policies, profiles_for(policies, FabricConfig(), workload, workers))
        self.journal: list[object] = []

    def handle(self, event: Event):
        decisions = super().handle(event)
        self.check_invariants()
        self.journal.append((event_to_dict(event), [decision_to_dict(d) for d in decisions]))
        return decisions


def prepare(workload: dict, fleet: list[dict], seed: int, **worker: object) -> tuple[list[Worker], Workload]:
    scenario = scenario_from_dict({"workload": {**workload, "seed": seed}, "pool": fleet}, "test.toml")
    pools = fleet_of(scenario)
    workers = [replace(pool_worker(pool, i), block_tokens=64, **worker) for pool in pools for i in range(pool.workers)]
    return workers, build(scenario.workload, pools)


def play(policy: str, workload: dict, fleet: list[dict], seed: int = 1, faults: Faults | None = None, **worker: object):
    workers, plans = prepare(workload, fleet, seed, **worker)
    fabric = Checked(policy, plans, workers)
    simulation = Simulation(fabric, workers, plans, faults)
    return simulation, simulation.run(), fabric


@pytest.mark.parametrize("policy", sorted(BUNDLES))
@pytest.mark.parametrize(("workload", "fleet"), [(GRAPH, []), (SESSIONS, SESSIONS_FLEET)], ids=["graph", "sessions"])
def test_every_pipeline_completes_under_every_policy(policy: str, workload: dict, fleet: list[dict]):
    patient = {**workload, "slo_stretch": 100.0}  # a bundle may end what is late
    simulation, records, fabric = play(policy, patient, fleet)
    assert {each.status for each in records.pipelines} == {"completed"}
    assert fabric.totals()["live_calls"] == 0
    totals = fabric.totals()
    assert totals["prompt_tokens"] == sum(call.prompt_tokens for call in records.calls)
    assert totals["cached_tokens"] == sum(call.cached_tokens or 0 for call in records.calls)
    for worker in simulation.workers.values():
        worker.check_invariants()
        assert worker.stats.running == worker.stats.waiting == 0


@pytest.mark.parametrize("policy", sorted(BUNDLES))
def test_every_pipeline_completes_with_a_dram_tier(policy: str):
    fleet = [{"model": "llama-3.1-8b", "workers": 2, "kv_tokens": 20_000, "dram_tokens": 9_000}]
    _, records, _ = play(policy, {**SESSIONS, "slo_stretch": 100.0}, fleet)
    assert {each.status for each in records.pipelines} == {"completed"}


@pytest.mark.parametrize("policy", ["fabric", "fcfs"])
def test_a_tier_that_holds_everything_hits_as_a_memory_that_does(policy: str):
    hits = []
    for sizes in ({"kv_tokens": 20_000}, {"kv_tokens": 20_000, "dram_tokens": 200_000}, {"kv_tokens": 220_000}):
        _, records, _ = play(policy, SESSIONS, [{"model": "llama-3.1-8b", "workers": 1, **sizes}])
        hits.append(sum(call.cached_tokens or 0 for call in records.calls))
    assert hits[0] < hits[1] == hits[2]


def test_the_fabric_hears_what_each_tier_holds():
    fleet = [{"model": "llama-3.1-8b", "workers": 2, "kv_tokens": 20_000, "dram_tokens": 30_000}]
    simulation, _, fabric = play("fabric", SESSIONS, fleet, has_kv_events=True)
    observed = fabric.book.pools["llama-3.1-8b"].warmth._observed
    for name, engine in simulation.workers.items():
        bit = observed._bits[name]
        held = {tier: {key for key, mask in masks.items() if mask & bit} for tier, masks in observed._masks.items()}
        assert held[Tier.HBM] == engine._scheduler.pool.contents().keys()
        assert held[Tier.DRAM] == engine._scheduler.loads.tier.contents().keys() != set()


SHORT = [{"model": "llama-3.1-8b", "workers": 2, "kv_tokens": 18_000}]
SHORT_DAG = [
    {"model": "llama-3.3-70b", "workers": 2, "kv_tokens": 20_000},
    {"model": "qwen3-32b", "workers": 2, "kv_tokens": 20_000},
    {"model": "bge-m3"},
    {"model": "bge-reranker-v2-m3"},
]


@pytest.mark.parametrize("policy", sorted(BUNDLES))
@pytest.mark.parametrize(("workload", "fleet"), [(GRAPH, SHORT_DAG), (SESSIONS, SHORT)], ids=["graph", "sessions"])
def test_every_policy_ends_every_pipeline_when_memory_is_short_and_workers_fail(
    policy: str, workload: dict, fleet: list[dict]
):
    first = f"{fleet[0]['model']}-0"
    faults = Faults(
        event_loss=0.2,
        event_delay_s=2.0,
        evict_tokens_per_s=50.0,
        metrics_staleness_s=3.0,
        outages=(Outage(worker=first, at_s=8.0, detect_s=2.0, down_s=20.0),),
        slow={f"{fleet[0]['model']}-1": 2.0},
    )
    simulation, records, fabric = play(policy, workload, fleet, 2, faults, has_kv_events=True)
    assert len(records.pipelines) == workload["pipelines"]
    assert {each.status for each in records.pipelines} <= {"completed", "failed", "refused"}
    assert sum(each.status == "completed" for each in records.pipelines) > 0
    for call in records.calls:
        assert call.status != "refused" or (policy, call.error) == ("edf-cancel", "deadline_exceeded")
    assert fabric.totals()["live_calls"] == 0
    fabric.check_invariants()
    for worker in simulation.workers.values():
        worker.check_invariants()


def test_a_late_pipeline_is_ended_at_its_deadline_and_misses_it():
    hurried = {**GRAPH, "slo_stretch": 1.05, "concurrency": 8}
    simulation, records, _ = play("edf-cancel", hurried, [])
    late = [each for each in records.pipelines if each.status == "refused"]
    assert late and all(each.met is False for each in late)
    for each in late:
        open_calls = [call for call in records.calls if call.pipeline == each.pipeline and call.status == "refused"]
        assert open_calls and {call.error for call in open_calls} == {"deadline_exceeded"}
        assert each.end_s - each.start_s >= each.slo_s
    kept = play("edf", hurried, [])[1]
    assert {each.status for each in kept.pipelines} == {"completed"}
    for worker in simulation.workers.values():
        assert worker.stats.running == worker.stats.waiting == 0


def heard(policy: str, staleness_s: float) -> list[WorkerReported]:
    _, _, fabric = play(policy, SESSIONS, SESSIONS_FLEET, 1, Faults(metrics_staleness_s=staleness_s))
    events = [event_from_dict(event) for event, _ in fabric.journal]
    return [event for event in events if isinstance(event, WorkerReported)]


def test_workers_report_only_to_who_reads_it_and_as_late_as_the_fault_says():
    assert heard("fabric", 5.0) == heard("session-affinity", 0.0) == []
    fresh, stale = heard("llm-d", 0.0), heard("llm-d", 20.0)
    assert len(fresh) > len(stale) > 0
    assert all(event.at_s % 20.0 == pytest.approx(0.0, abs=1e-6) for event in stale)
    assert {event.name for event in fresh} == {f"llama-3.1-8b-{i}" for i in range(3)}
    idle = {event.name for event in fresh if (event.running, event.waiting, event.kv_used_ratio) == (0, 0, 0.0)}
    assert idle == {event.name for event in fresh}, "a worker whose calls have ended says so"
    assert max(event.running for event in fresh) > 1 and max(event.kv_used_ratio for event in fresh) > 0.5


@pytest.mark.parametrize("policy", ["fabric", "session-affinity", "llm-d-las", "fabric-clairvoyant"])
def test_one_seed_gives_one_run(policy: str):
    runs = [play(policy, SESSIONS, SESSIONS_FLEET, seed=3, has_kv_events=True) for _ in range(2)]
    assert runs[0][1].calls == runs[1][1].calls
    assert runs[0][2].journal == runs[1][2].journal


@pytest.mark.parametrize("faults", [None, Faults(evict_tokens_per_s=500.0, slow={"llama-3.1-8b-2": 3.0})])
@pytest.mark.parametrize("policy", ["session-affinity", "fabric"])
def test_workers_that_compute_every_iteration_give_the_same_run(policy: str, faults: Faults | None):
    runs = []
    for stepping in (True, False):
        workers, plans = prepare(SESSIONS, SESSIONS_FLEET, 4)
        simulation = Simulation(Fabric(FabricConfig(), policies_named(policy)), workers, plans, faults)
        if stepping:
            for name, worker in simulation.workers.items():
                simulation.workers[name] = SimWorker(worker.config, stepping=True)
        runs.append(sorted(simulation.run().calls, key=lambda call: (call.pipeline, call.index)))
    exact, fast = runs
    times = [[(call.start_s, call.end_s, call.ttft_s) for call in run] for run in runs]
    assert len(fast) > 100
    for one, other in zip(*times, strict=True):
        assert other == pytest.approx(one, rel=1e-9)
    timeless = {"start_s": 0.0, "end_s": 0.0, "ttft_s": 0.0}
    assert [replace(call, **timeless) for call in fast] == [replace(call, **timeless) for call in exact]


@pytest.mark.parametrize("seed", range(4))
def test_faults_lose_only_what_had_begun_to_stream_on_a_dead_worker(seed: int):
    faults = Faults(
        event_loss=0.3,
        event_delay_s=5.0,
        evict_tokens_per_s=2_000.0,
        outages=(
            Outage(worker="llama-3.1-8b-0", at_s=20.0, detect_s=3.0, down_s=60.0),
            Outage(worker="llama-3.1-8b-1", at_s=150.0, detect_s=0.5, down_s=30.0),
        ),
        slow={"llama-3.1-8b-2": 3.0},
    )
    _, records, fabric = play("fabric", SESSIONS, SESSIONS_FLEET, seed, faults, has_kv_events=True)
    assert fabric.totals()["live_calls"] == 0
    assert not [call for call in records.calls if call.status == "refused"]
    for call in records.calls:
        if call.status == "failed":
            assert call.ttft_s is not None and call.error == "connection reset", "this call could have been saved"


def test_a_whole_pool_down_holds_calls_and_then_refuses_them_with_a_reason():
    outages = tuple(Outage(worker=f"llama-3.1-8b-{i}", at_s=5.0, detect_s=0.1, down_s=400.0) for i in range(3))
    _, records, fabric = play("fabric", SESSIONS, SESSIONS_FLEET, 1, Faults(outages=outages))
    refused = [call for call in records.calls if call.status == "refused"]
    assert refused and {call.error for call in refused} == {"no_worker"}
    assert fabric.totals()["live_calls"] == 0


def test_belief_about_warmth_is_corrected_when_a_worker_lies():
    quiet = play("fabric", SESSIONS, SESSIONS_FLEET, 2)
    lied = play("fabric", SESSIONS, SESSIONS_FLEET, 2, Faults(evict_tokens_per_s=20_000.0))

    def forgotten(fabric: Fabric) -> int:
        return sum(report["drift"]["forgotten_tokens"] for report in fabric.worker_reports())

    assert forgotten(lied[2]) > forgotten(quiet[2])
    cached = [sum(call.cached_tokens or 0 for call in run[1].calls) for run in (quiet, lied)]
    assert cached[1] < cached[0], "the emulated loss is real"


def test_hold_back_keeps_more_warm_than_affinity_when_memory_is_short():
    workload = {"kind": "coding-sessions", "pipelines": 5, "concurrency": 5, "think_cap_s": 60}
    fleet = [{"model": "llama-3.3-70b", "workers": 1, "kv_tokens": 230_000}]
    ratio = {}
    for policy in ("session-affinity", "fabric"):
        workers, plans = prepare(workload, fleet, 5)
        records = Simulation(Fabric(FabricConfig(), policies_named(policy)), workers, plans).run()
        prompt = sum(call.prompt_tokens for call in records.calls)
        ratio[policy] = sum(call.cached_tokens or 0 for call in records.calls) / prompt
    assert ratio["fabric"] > ratio["session-affinity"] + 0.05, ratio


def test_a_pipeline_that_ends_early_gives_its_place_away_once():
    """Calls that run on after their pipeline's end have no place to give."""
    fan_out = {"kind": "graph", "graph": "map-reduce", "pipelines": 12, "concurrency": 2, "scale_tokens": 0.2}
    workers, plans = prepare(fan_out, [], 3)
    outages = tuple(Outage(worker=worker.name, at_s=4.0, detect_s=0.0, down_s=9.0) for worker in workers)
    records = Simulation(Checked("fabric", plans, workers), workers, plans, Faults(outages=outages)).run()
    ended = [each for each in records.pipelines if each.status != "completed"]
    assert any(
        sum(call.pipeline == each.pipeline and call.status != "ok" for call in records.calls) > 1 for each in ended
    )
    for each in records.pipelines:
        at_once = sum(other.start_s <= each.start_s < other.end_s for other in records.pipelines)
        assert at_once <= 2

"""A case of a study: the same whenever it is played, paired with the others of its seed, with the scenario's faults."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest

from amf.core.policy.bundles import BUNDLES
from amf.sim import study
from amf.sim.scenario import FaultSpec, Scenario, ScenarioError, scenario_from_dict
from amf.sim.study import Case, cases_of, faults_of, play

SESSIONS = {"kind": "coding-sessions", "pipelines": 6, "concurrency": 6, "scale_tokens": 0.05, "think_cap_s": 60}
FLEET = [{"model": "llama-3.1-8b", "workers": 3, "kv_tokens": 30_000}]


def scenario(**faults: float) -> Scenario:
    return scenario_from_dict({"workload": SESSIONS, "pool": FLEET, "faults": faults}, "study.toml")


def unwatched(arrived: int, total: int) -> None:
    pass


def report(policy: str = "fabric", seed: int = 1, **faults: float) -> dict:
    return play(scenario(**faults), Case(policy=policy, seed=seed), unwatched).report


def test_a_case_is_the_same_whenever_it_is_played():
    first = json.dumps(report())
    assert json.dumps(report("round-robin")) != first
    study._prepared.cache_clear()
    assert json.dumps(report()) == first
    assert json.dumps(report(seed=2)) != first


def test_policies_meet_the_same_pipelines_under_one_seed():
    fabric, rival = report(), report("session-affinity")
    assert fabric["bound"] == rival["bound"] and fabric["ideal_hit_ratio"] == rival["ideal_hit_ratio"]
    assert fabric["jct_s"] != rival["jct_s"]
    assert fabric["bound"] != report(seed=2)["bound"]


def test_the_report_knows_what_the_simulator_can_know():
    made = report()
    assert made["completed"] == made["pipelines"] == 6
    assert 0 < made["hit_ratio"] <= made["ideal_hit_ratio"] < 1
    assert made["gpu_s"] == pytest.approx(made["cost_usd"] * 3600 * 3 / (3 * hourly_dollars()))
    assert made["bytes"]["kv"] > made["bytes"]["reprefill"] >= 0
    assert made["decision_us"] == {"p50": None, "p99": None}
    assert any("SYNTHETIC" in note for note in made["notes"])


def hourly_dollars() -> float:
    return study._prepared(scenario(), 1).workers[0].profile.dollars_per_hour


def test_workers_publish_kv_events_in_the_plans_blocks():
    prepared = study._prepared(scenario(), 1)
    size = prepared.workload.pipelines[0].calls[0].prompt.block_tokens
    assert {(worker.has_kv_events, worker.block_tokens) for worker in prepared.workers} == {(True, size)}


def test_outages_are_drawn_once_for_all_policies():
    prepared = study._prepared(scenario(), 1)

    def drawn(rate: float):
        return faults_of(FaultSpec(worker_loss_per_h=rate), prepared.workload, prepared.workers).outages

    assert drawn(0.0) == ()
    assert drawn(6.0) == drawn(6.0)
    horizon_h = sum(plan.standalone_s for plan in prepared.workload.pipelines) / 3600
    many = drawn(30.0)
    each_h = 1 / 30 + 60 / 3600  # up for a thirtieth of an hour on average, down for a minute
    assert len(many) == pytest.approx(3 * horizon_h / each_h, rel=0.4)
    for worker in prepared.workers:
        mine = [outage for outage in many if outage.worker == worker.name]
        assert mine
        assert all(b.at_s >= a.at_s + a.down_s for a, b in pairwise(mine)), "dies once at a time"


def test_faults_reach_the_run():
    quiet = report()
    slow = report(slow_worker=4.0)
    assert slow["jct_s"]["mean"] > quiet["jct_s"]["mean"]
    assert report(event_loss=0.9, event_delay_s=30.0)["ttft_s"] != quiet["ttft_s"]
    lost = play(scenario(worker_loss_per_h=60.0), Case(policy="fabric", seed=1), unwatched)
    assert any(call.attempts > 1 or call.status == "failed" for call in lost.records.calls)


def test_a_fault_without_effect_is_said_to_have_none():
    stale = report(metrics_staleness_s=5.0)
    assert [note for note in stale["notes"] if "metrics_staleness_s has no effect on policies" in note]
    assert {**stale, "notes": None} == {**report(), "notes": None}


def test_stale_load_reports_reach_who_reads_them():
    stale = report("llm-d", metrics_staleness_s=60.0)
    assert not [note for note in stale["notes"] if "metrics_staleness_s" in note]
    assert stale["ttft_s"] != report("llm-d")["ttft_s"]


def test_the_watch_counts_calls_and_may_end_the_run():
    seen: list[tuple[int, int]] = []
    play(scenario(), Case(policy="round-robin", seed=1), lambda arrived, total: seen.append((arrived, total)))
    assert [arrived for arrived, _ in seen] == list(range(1, seen[-1][1] + 1))

    def stop(arrived: int, total: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        play(scenario(), Case(policy="round-robin", seed=1), stop)


def test_cases_go_seed_by_seed_and_name_unknown_policies():
    cases = cases_of(["fabric", "round-robin", "fabric"], [3, 4], "here")
    assert [(case.policy, case.seed) for case in cases] == [
        ("fabric", 3), ("round-robin", 3), ("fabric", 4), ("round-robin", 4),
    ]  # fmt: skip
    with pytest.raises(ScenarioError, match=r"here: unknown policy 'session-afinity'; did you mean session-affinity"):
        cases_of(["session-afinity"], [1], "here")
    with pytest.raises(ScenarioError, match="unknown policy 'zzz'; known: round-robin"):
        cases_of(["zzz"], [1], "here")
    with pytest.raises(ScenarioError, match="names no policy"):
        cases_of([], [1], "here")


def test_bounds_of_the_scenario_and_of_the_case_reach_the_fabric():
    """Six sessions begin at once where only four may live: two are refused."""
    table = {"workload": SESSIONS, "pool": FLEET, "fabric": {"hold_fraction": 1, "max_live_pipelines": 4}}
    settled = scenario_from_dict(table, "study.toml")
    assert settled.fabric == (("max_live_pipelines", 4), ("hold_fraction", 1.0)), "in the order of FabricConfig"
    by_file = play(settled, Case(policy="fabric", seed=1), unwatched).report
    by_case = play(scenario(), Case(policy="fabric", seed=1, config=settled.fabric), unwatched).report
    assert by_file == by_case and by_file["refused"] == 2
    raised = play(settled, Case(policy="fabric", seed=1, config=(("max_live_pipelines", 9),)), unwatched).report
    assert raised["refused"] == 0, "the case's bounds are on top of the scenario's"


def test_a_case_may_have_choices_of_its_own():
    """Under another name, `fabric` with the route of `round-robin` serves every worker alike."""
    bundle = replace(BUNDLES["fabric"], route=BUNDLES["round-robin"].route)
    mixed = play(scenario(), Case(policy="mixed", seed=1, bundle=bundle), unwatched).report
    assert mixed["policy"] == "mixed"
    assert mixed["call_imbalance"] == report("round-robin")["call_imbalance"] < report()["call_imbalance"]

"""Predictions that are put in for those a fabric learns: the plan's own, and ones that err by a known amount."""

import inspect
from dataclasses import replace
from math import exp, inf
from statistics import mean, median, stdev

import pytest

from amf.core.config import FabricConfig
from amf.core.fabric import Fabric
from amf.core.policy.bundles import policies_named
from amf.core.state.profiles import Profiles
from amf.core.types import Call
from amf.sim.loop import Simulation
from amf.sim.misled import Misled
from amf.sim.oracle import Oracle
from amf.sim.plan import CallPlan, PipelinePlan, PromptPlan, Workload
from amf.sim.scenario import PoolSpec, pool_worker, scenario_from_dict
from amf.sim.study import Case, play
from amf.sim.workload.timing import calls_alone_s

POOLS = {name: pool_worker(PoolSpec(model=name), 0) for name in ("llama-3.1-8b", "llama-3.3-70b")}
SMALL, LARGE = POOLS
PROFILES = {pool: worker.profile for pool, worker in POOLS.items()}


def planned(index: int, pool: str, *parents: int, gap_s: float = 0.0, lane: str = "") -> CallPlan:
    prompt = PromptPlan(namespace=f"n{index}", block_tokens=64, runs=((0, 20),))
    output = 100 * (index + 1)
    return CallPlan(
        index=index,
        hop=f"h{index}",
        pool=pool,
        prompt=prompt,
        output_tokens=output,
        parents=parents,
        gap_s=gap_s,
        lane=lane,
    )


# 0 -> 1 (other pool) -> 3, and 0 -> 2 after a long tool -> 3; 4 comes last, as a sub-agent.
DIAMOND = PipelinePlan(
    pipeline_id="p/1",
    graph="g",
    calls=(
        planned(0, SMALL),
        planned(1, LARGE, 0, gap_s=1.0),
        planned(2, SMALL, 0, gap_s=40.0),
        planned(3, LARGE, 1, 2, gap_s=2.0),
        planned(4, SMALL, 3, lane="/sub"),
    ),
)
ALONE_S = calls_alone_s(DIAMOND, PROFILES)


def oracle() -> Oracle:
    return Oracle(FabricConfig(), Workload(name="w", pipelines=(DIAMOND,)), tuple(POOLS.values()))


def call(index: int) -> Call:
    plan = DIAMOND.calls[index]
    return Call(call_id=f"p/1/{index}", run_id="p/1", pool=plan.pool, graph="g", hop=plan.hop)


def test_the_oracle_knows_lengths_and_the_true_critical_path():
    known = oracle()
    assert [known.expected_output_tokens(call(index)) for index in range(5)] == [100, 200, 300, 400, 500]
    assert [known.expected_service_s(call(index)) for index in range(5)] == ALONE_S
    rest_s = 40.0 + ALONE_S[2] + 2.0 + ALONE_S[3] + ALONE_S[4]
    assert known.expected_after_s(call(0), by_graph_s=123.0) == pytest.approx(rest_s)
    assert known.expected_after_s(call(4), by_graph_s=123.0) == 0.0


def test_the_oracle_learns_how_much_a_pool_slows_its_calls_down():
    known = oracle()
    known.observe_call(call(0), 100, 3.0 * ALONE_S[0])
    assert known.expected_service_s(call(2)) == pytest.approx(3.0 * ALONE_S[2])
    assert known.expected_service_s(call(1)) == ALONE_S[1]
    rest_s = 2.0 + ALONE_S[3] + 3.0 * ALONE_S[4]
    assert known.expected_after_s(call(2), 0.0) == pytest.approx(rest_s)


def test_the_oracle_knows_when_a_context_is_used_again():
    known = oracle()
    assert known.return_s(call(0)) == 40.0
    assert known.return_s(call(1)) == pytest.approx(2.0), "after the join, if that is all it waits for"
    assert known.return_s(call(2)) == inf, "the sub-agent has another context"
    assert known.return_s(call(3)) == inf
    assert known.protection_s(call(0), worth_s=41.0) == pytest.approx(40.0, abs=0.01)
    assert known.protection_s(call(0), worth_s=39.0) == 0.0
    assert known.protection_s(call(3), worth_s=1e9) == known.residence_s(call(3)) == 0.0
    assert known.residence_s(call(0)) == pytest.approx(40.0, abs=0.01)


def test_an_oracle_of_another_workload_is_a_mistake():
    with pytest.raises(KeyError):
        oracle().expected_service_s(Call(call_id="q/0", run_id="q", pool=SMALL))


def test_without_error_misled_predictions_are_the_inner_ones():
    inner = oracle()
    same = Misled(inner, sigma=0.0, seed=1)
    for index in range(5):
        for asked in (same, inner):
            asked.observe_call(call(index), 100, 2.0)
        assert same.expected_service_s(call(index)) == inner.expected_service_s(call(index))
        assert same.expected_after_s(call(index), 5.0) == inner.expected_after_s(call(index), 5.0)
        assert same.protection_s(call(index), 50.0) == inner.protection_s(call(index), 50.0)
    assert same.duty(SMALL) == inner.duty(SMALL)
    with pytest.raises(ValueError, match="sigma"):
        Misled(inner, sigma=-0.1, seed=1)


def test_errors_are_lognormal_with_median_one_and_belong_to_run_and_hop():
    inner = Profiles(FabricConfig())
    inner.observe_call(Call(call_id="x", run_id="x", pool="m"), 100, 10.0)
    misled = Misled(inner, sigma=0.5, seed=7)
    calls = [Call(call_id=f"c{n}", run_id=f"r{n}", pool="m", hop="h") for n in range(2_000)]
    factors = [misled.expected_service_s(each) / 10.0 for each in calls]
    assert factors == [misled.expected_service_s(replace(each, call_id="again")) / 10.0 for each in calls]
    assert median(factors) == pytest.approx(1.0, abs=0.05)
    assert mean(factors) == pytest.approx(exp(0.125), abs=0.08)
    assert stdev(factors) == pytest.approx(mean(factors) * (exp(0.25) - 1) ** 0.5, rel=0.15)
    other = Misled(inner, sigma=0.5, seed=8)
    assert factors[0] != other.expected_service_s(calls[0]) / 10.0
    assert factors[0] != misled.expected_after_s(calls[0], 1.0), "each kind of prediction has its own error"
    lengths = [misled.expected_output_tokens(replace(each, max_output_tokens=3)) for each in calls]
    assert min(lengths) < 1.0 and max(lengths) > 9.0, "too long as well as too short, whatever the limit"


def test_every_question_to_profiles_has_an_answer_in_misled():
    asked = {name for name, _ in inspect.getmembers(Profiles, inspect.isfunction) if not name.startswith("_")}
    assert asked <= set(vars(Misled)), "an inherited method would ask state that a Misled does not have"


def test_a_fabric_asks_what_is_put_in():
    fabric = Fabric(FabricConfig(), policies_named("fabric"), Misled(oracle(), sigma=1.0, seed=3))
    calls = Simulation(fabric, tuple(POOLS.values()), Workload(name="w", pipelines=(DIAMOND,))).run().calls
    assert [each.status for each in calls] == ["ok"] * 5
    fabric.check_invariants()


def test_the_clairvoyant_bundle_plays_with_the_plan(monkeypatch: pytest.MonkeyPatch):
    from_study = []
    real = Oracle.return_s
    monkeypatch.setattr(Oracle, "return_s", lambda self, asked: from_study.append(asked) or real(self, asked))
    play(tiny(), Case(policy="fabric", seed=1), lambda arrived, total: None)
    assert not from_study
    report = play(tiny(), Case(policy="fabric-clairvoyant", seed=1), lambda arrived, total: None).report
    assert from_study and report["completed"] == report["pipelines"]


def tiny():
    from_dict = {"kind": "coding-sessions", "pipelines": 3, "concurrency": 3, "scale_tokens": 0.05, "think_cap_s": 60}
    return scenario_from_dict({"workload": from_dict, "pool": [{"model": SMALL, "kv_tokens": 30_000}]}, "tiny.toml")

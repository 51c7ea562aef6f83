"""What the fabric states of remaining paths, held against what they took."""

from dataclasses import replace

import pytest

from amf.core.config import FabricConfig
from amf.core.state.profiles import Profiles
from amf.sim.calibration import STATED, Calibration, _Said
from amf.sim.plan import CallPlan, PipelinePlan, PromptPlan, Workload
from amf.sim.report import CallRecord, PipelineRecord, RunRecords
from amf.sim.scenario import scenario_from_dict
from amf.sim.study import Case, play

GRAPH = {"kind": "graph", "graph": "dag-4", "pipelines": 250, "load": 0.1, "slo_stretch": 3.0}


def planned(index: int, *parents: int, gap_s: float = 0.0) -> CallPlan:
    prompt = PromptPlan(namespace="n", block_tokens=64, runs=((0, 20),))
    return CallPlan(
        index=index, hop=f"h{index}", pool="m", prompt=prompt, output_tokens=9, parents=parents, gap_s=gap_s
    )


def record(index: int, end_s: float) -> CallRecord:
    return CallRecord(pipeline="p", index=index, hop=f"h{index}", pool="m", start_s=0.0, end_s=end_s)


def test_what_a_path_took_is_services_and_gaps_on_the_longest_way_without_our_queues():
    """0 takes 2 s; then 1 (after a gap of 1 s, and 5 s in the queue) takes 4 s, and 2 takes 3 s; 3 joins and takes 1 s."""
    calls = (planned(0), planned(1, 0, gap_s=1.0), planned(2, 0), planned(3, 1, 2, gap_s=0.5))
    plan = PipelinePlan(pipeline_id="p", graph="g", calls=calls)
    sent_s, ends_s = (0.0, 8.0, 2.0, 15.0), (2.0, 12.0, 5.0, 16.0)
    calibration = Calibration(FabricConfig(), Profiles(FabricConfig()))
    for index, at_s in enumerate(sent_s):
        calibration._said[f"p/{index}"] = _Said(at_s, [1.0] * len(STATED), 9.0)
    ended = {f"p/{index}": end_s for index, end_s in enumerate(ends_s)}
    took_s = [took_s for _, took_s in calibration._held_against(plan, ended)]
    assert took_s[::-1] == [2 + 1 + 4 + 0.5 + 1, 4 + 0.5 + 1, 3 + 0.5 + 1, 1]


def test_shares_are_of_completed_pipelines_and_cold_ones_stand_apart():
    plans = tuple(PipelinePlan(pipeline_id=name, graph="g", calls=(planned(0),)) for name in "abcd")
    calibration = Calibration(FabricConfig(), Profiles(FabricConfig()))
    for name, quantiles_s, evidence in (("a", [4.0] * 7, 200.0), ("b", [6.0] * 7, 20.0), ("c", [9.0] * 7, 9.0)):
        calibration._said[f"{name}/0"] = _Said(0.0, quantiles_s, evidence)
    calibration._said["d/0"] = _Said(0.0, (), 3.0)
    status = {"a": "completed", "b": "completed", "c": "failed", "d": "completed"}
    pipelines = [PipelineRecord(pipeline=n, graph="g", start_s=0.0, end_s=5.0, status=s) for n, s in status.items()]
    records = RunRecords(pipelines=pipelines, calls=[replace(record(0, 5.0), pipeline=name) for name in "abcd"])
    found = calibration.report(Workload(name="w", pipelines=plans), records)
    assert found["p50"] == found["p99"] == 0.5 and found["p90_known"] == 0.0
    assert (found["predictions"], found["cold"], found["evidence"]) == (2, 1, 110.0)


def test_where_calls_are_alone_what_is_stated_is_about_true_and_noting_it_changes_nothing():
    scenario = scenario_from_dict({"workload": GRAPH}, "dag-4.toml")
    noted = play(scenario, Case(policy="fabric", seed=7, calibrated=True), lambda arrived, total: None).report
    plain = play(scenario, Case(policy="fabric", seed=7), lambda arrived, total: None).report
    found = noted.pop("calibration")
    assert noted == plain
    assert found["predictions"] + found["cold"] == 1_000 and found["predictions"] > 900
    for name, quantile in STATED.items():
        assert found[name] == pytest.approx(quantile, abs=0.07), name

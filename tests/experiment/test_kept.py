"""What makes a kept run another run."""

from dataclasses import replace
from pathlib import Path

import pytest

from amf.experiment import kept
from amf.experiment.kept import run_file
from amf.sim.scenario import scenario_from_dict
from amf.sim.study import Case

POOL = [{"model": "qwen3-8b", "workers": 1}]


def recorded(path: Path):
    workload = {"kind": "azure", "path": str(path), "arrival": "trace", "pipelines": 1}
    return scenario_from_dict({"workload": workload, "pool": POOL}, "test.toml")


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text("one\n")
    return path


def test_the_same_run_has_the_same_file(recording: Path):
    case = Case(policy="fabric", seed=7)
    assert run_file(Path(), "s", "l", recorded(recording), case) == run_file(
        Path(), "s", "l", recorded(recording), case
    )


def test_scenario_case_label_and_recording_each_make_another(recording: Path, tmp_path: Path):
    case, scenario = Case(policy="fabric", seed=7), recorded(recording)
    other = tmp_path / "other.csv"
    other.write_text("two\n")
    files = [
        run_file(Path(), "s", "l", scenario, case),
        run_file(Path(), "t", "l", scenario, case),
        run_file(Path(), "s", "m", scenario, case),
        run_file(Path(), "s", "l", replace(scenario, workload=replace(scenario.workload, pipelines=2)), case),
        run_file(Path(), "s", "l", scenario, replace(case, seed=8)),
        run_file(Path(), "s", "l", scenario, replace(case, config=(("lapse_s", 1.0),))),
        run_file(Path(), "s", "l", scenario, replace(case, error_sigma=0.5)),
        run_file(Path(), "s", "l", scenario, replace(case, calibrated=True)),
        run_file(Path(), "s", "l", scenario, replace(case, speculation="off")),
        run_file(Path(), "s", "l", recorded(other), case),
    ]
    assert len(set(files)) == len(files)


def test_what_a_recording_says_counts_and_not_only_its_name(tmp_path: Path):
    (tmp_path / "trace.csv").write_text("one\n")
    case = Case(policy="fabric", seed=7)
    before = run_file(Path(), "s", "l", recorded(tmp_path), case)
    kept._content.cache_clear()  # a process reads it once
    (tmp_path / "trace.csv").write_text("two\n")
    assert run_file(Path(), "s", "l", recorded(tmp_path), case) != before

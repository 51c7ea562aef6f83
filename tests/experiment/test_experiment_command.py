"""`amf experiment` from the outside: every study in small, its document, its page, and what it says to mistakes."""

import json
import platform
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from amf.cli import app
from amf.experiment.studies import STUDIES, about, study_named
from amf.experiment.study import Options, Reaches

TINY = ("--quick", "--seeds", 1, "--pipelines", 1, "--jobs", 1)
GOAL_KEYS = {"name", "goal", "value", "ci95", "met"}


def experiment(*arguments: object):
    return CliRunner().invoke(app, ["experiment", *(str(each) for each in arguments)])


def document(name: str, folder: Path, *arguments: object) -> dict:
    file = folder / "out.json"
    result = experiment(name, *TINY, "--json", file, *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(file.read_text())


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_runs_and_writes_its_document(name: str, tmp_path: Path):
    page = tmp_path / "page.html"
    made = document(name, tmp_path, "--html", page)
    assert made["experiment"] == name and made["seed"] == 7 and made["quick"] is True
    study = study_named(name, Options(quick=True, seeds=1, pipelines=1))
    variants = {setting.label: [variant.name for variant in setting.variants] for setting in study.settings}
    variants = {average.label: variants[average.of[0]] for average in study.averages} | variants
    assert [(row["setting"], row["policy"]) for row in made["rows"]] == [
        (label, name) for label, names in variants.items() for name in names
    ]
    assert all(row["pipelines"] == 1 for row in made["rows"])
    assert made["goals"] and all(set(goal) >= GOAL_KEYS for goal in made["goals"])
    assert [goal["name"] for goal in made["goals"]] == [goal.name for goal in study.goals]
    for row in made["rows"]:  # what a study measured stands apart
        assert ("measured" in row) == study.measured
        assert not study.measured or row["measured"]["calls_per_s"] > 0 < row["measured"]["peak_bytes"]
    html = page.read_text()
    assert not re.search(r"""(src|href)=["']https?:""", html) and "<script" not in html and "<svg" in html
    assert ("reliability: " in html) == any("calibration" in row for row in made["rows"]) == (name == "calibration")


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("name", STUDIES)
def test_every_study_is_consistent(name: str, quick: bool):
    """Labels are unique, goals are about settings and policies that are played, and one axis has a place for each setting."""
    study = study_named(name, Options(quick=quick))
    places = (*study.settings, *study.averages)
    labels = [place.label for place in places]
    assert len(set(labels)) == len(labels) and len({goal.name for goal in study.goals}) == len(study.goals)
    played = {setting.label: [variant.name for variant in setting.variants] for setting in study.settings}
    for average in study.averages:
        assert average.of and all(played[label] == played[average.of[0]] for label in average.of)
        played[average.label] = played[average.of[0]]
    for goal in study.goals:
        along = goal.along if isinstance(goal, Reaches) else ((None, goal.setting),)
        assert all(goal.policy in played[label] for _, label in along)
        assert [x for x, _ in along] == sorted({x for x, _ in along})
        for rival in getattr(goal, "rivals", ()):
            assert all(rival in played[getattr(goal, "than", "") or label] for _, label in along)
    assert all((place.x is not None) == bool(study.axis) for place in places)


def test_one_seed_gives_one_document_to_the_byte(tmp_path: Path):
    files = [tmp_path / f"{jobs}.json" for jobs in (1, 2)]
    for jobs, file in zip((1, 2), files, strict=True):
        result = experiment("herding", *TINY[:-1], jobs, "--json", file)
        assert result.exit_code == 0, result.output
    assert files[0].read_bytes() == files[1].read_bytes()


def test_recordings_are_told_apart_and_played(tmp_path: Path):
    folder = tmp_path / "traces"
    folder.mkdir()
    call = {"id": "0", "p": [], "t": 0.0, "dur": 1.0, "gap": None, "kind": "tool", "model": "m", "agent": "main",
            "in": 640, "out": 20, "new": [[1, 10]]}  # fmt: skip
    session = {"session": "s", "block": 64, "tool_tokens": 0, "system_tokens": 0, "calls": [call]}
    (folder / "sessions.jsonl").write_text(json.dumps(session) + "\n")
    requests = [
        {"timestamp": 1000 * i, "input_length": 1500, "output_length": 30, "hash_ids": [0, 1, i + 2]} for i in range(3)
    ]
    (folder / "chat.jsonl").write_text("".join(json.dumps(each) + "\n" for each in requests))
    made = document("rivals", tmp_path, "--trace", folder)
    assert {row["workload"] for row in made["rows"]} == {"claude-code", "mooncake", "coding-7hop"}
    assert [goal["figure"] for goal in made["goals"] if goal["setting"] == "chat"] == ["hit_ratio", "ttft_s.p99"]
    (folder / "other.jsonl").write_text('{"neither": 1}\n')
    refused = experiment("rivals", *TINY, "--trace", folder / "other.jsonl")
    assert refused.exit_code == 2 and "neither recorded sessions nor Mooncake" in refused.output.replace("\n", " ")


def test_all_studies_make_one_page_and_are_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("amf.commands.experiment.STUDIES", ["herding", "load-sweep"])
    page, keep = tmp_path / "results.md", tmp_path / "kept"
    arguments = ("all", *TINY, "--markdown", page, "--keep", keep, "--resume")
    first = experiment(*arguments)
    assert first.exit_code == 0 and "study 2 of 2: load-sweep\n" in first.output, first.output
    text = page.read_text()
    made = [json.loads((keep / f"{name}.json").read_text()) for name in ("herding", "load-sweep")]
    for each in made:
        assert f"## {each['experiment']}\n" in text and f"`{each['command']}`" in text and "**Quick:" in text
        met = sum(goal["met"] is True for goal in each["goals"])
        assert f"| [{each['experiment']}](#{each['experiment']}) (quick) | 1 | {met} |" in text
        assert (keep / f"{each['experiment']}.html").exists()
    assert f"Python {platform.python_version()}" in text and "cores" in text
    assert all(goal["name"] in text for each in made for goal in each["goals"])
    runs = sorted((keep / "runs").iterdir())
    again = experiment(*arguments)
    assert ": runs " not in again.output and page.read_text() == text
    runs[0].unlink()
    part = experiment("all", *TINY, "--markdown", tmp_path / "part.md", "--keep", keep, "--finished")
    (left,) = (name for name in ("herding", "load-sweep") if f"left out: {name}, 1 runs are missing" in part.output)
    assert part.exit_code == 0 and "study 1 of 1: " in part.output and ": runs " not in part.output, part.output
    assert f"not on this page: {left}\n" in (tmp_path / "part.md").read_text()
    assert f"## {left}\n" not in (tmp_path / "part.md").read_text()
    mended = experiment(*arguments)
    assert mended.output.count(": runs 1 (") == 1 and mended.output.count(": runs ") == 1, mended.output
    assert page.read_text() == text and sorted((keep / "runs").iterdir()) == runs
    assert "is for one study" in experiment("all", "--json", tmp_path / "x.json").output
    assert "is for all studies" in experiment("herding", *TINY, "--keep", keep, "--finished").output


def test_without_a_name_the_studies_are_listed():
    result = experiment()
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.output.splitlines()] == list(STUDIES)
    assert all(about(name) in result.output for name in STUDIES)


def test_mistakes_are_refused_with_a_remedy(tmp_path: Path):
    for arguments, said in (
        (("sesions",), "did you mean sessions"),
        (("sessions", "--json", tmp_path / "nowhere" / "x.json"), "make the folder"),
        (("sessions", "--trace", tmp_path / "absent.jsonl"), "cannot be read"),
        (("sessions", "--trace", tmp_path), "has no recorded sessions"),
    ):
        result = experiment(*arguments)
        assert result.exit_code == 2 and said in result.output.replace("\n", " "), result.output
        assert "Traceback" not in result.output

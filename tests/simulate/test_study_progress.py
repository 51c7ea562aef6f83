"""Progress: a bar where somebody looks on, a line a run where nobody does."""

import io
import sys

import pytest

from amf.simulate.progress import StudyProgress

REPORT = {"policy": "fabric", "seed": 7, "completed": 3, "pipelines": 4}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def played() -> None:
    with StudyProgress(2, "amf simulate: runs 2, processes 1") as progress:
        progress.moved([0.5])
        progress.finished(REPORT)
        progress.moved([1.0, 0.25])
    assert progress.done == 1


def test_lines_in_a_pipe(capsys: pytest.CaptureFixture[str]):
    played()
    said = capsys.readouterr()
    assert said.out == "", "standard output is for results"
    assert said.err.splitlines() == [
        "amf simulate: runs 2, processes 1",
        "[1/2] fabric, seed 7: 3 of 4 pipelines completed",
    ]


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    played()
    assert "pipelines completed" not in terminal.getvalue()
    assert "62%" in terminal.getvalue() and "1 of 2 runs" in terminal.getvalue()

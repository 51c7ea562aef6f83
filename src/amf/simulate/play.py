"""One task: a case on a scenario, played to its end. Who plays it, and where, changes no figure of its report."""

import gc
import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from amf.bench.driver import PipelineRun
from amf.sim.memory.run import play_memory
from amf.sim.memory.scenario import MemoryScenario
from amf.sim.report import Report
from amf.sim.scenario import Scenario
from amf.sim.study import Case, Watch, play
from amf.simulate.pages import page_runs
from amf.simulate.progress import StudyProgress


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """`label` tells it from others in lines of progress. `keep`: a file that whoever plays it leaves the figures in. On the
    scenario of a memory the case's policy is a layout, and of the rest of the case only the seed counts."""

    scenario: Scenario | MemoryScenario
    case: Case
    label: str = ""
    keep: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """`cpu_s`: CPU seconds from the first call to the report, without making the workload. `peak_bytes`: the most memory that
    the process ever held, earlier tasks included. Both are measured and differ between runs; nothing else does."""

    report: Report
    runs: tuple[PipelineRun, ...]
    calls: int
    cpu_s: float
    peak_bytes: int


class Players(Protocol):
    """Whoever plays tasks: this process, several, or a cluster."""

    def play(self, tasks: Sequence[Task], progress: StudyProgress) -> list[Played]:
        """In the order of `tasks`. Raises ScenarioError if one cannot be built."""
        ...


class _Stopwatch:
    """CPU seconds of this process since the first call arrived. What is there by then, the plans above all, stays to the end:
    the garbage collector need not look through it again and again."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._began_s: float | None = None

    def __call__(self, arrived: int, total: int) -> None:
        if self._began_s is None:
            gc.freeze()
            self._began_s = time.process_time()
        self._watch(arrived, total)

    def elapsed_s(self) -> float:
        return 0.0 if self._began_s is None else time.process_time() - self._began_s


def play_task(task: Task, watch: Watch) -> Played:
    """Raises ScenarioError if the workload cannot be built, and what `watch` raises."""
    stopwatch = _Stopwatch(watch)
    try:
        report, runs, calls = _played(task, stopwatch)
    finally:
        gc.unfreeze()
    played = Played(
        report=report,
        runs=runs,
        calls=calls,
        cpu_s=stopwatch.elapsed_s(),
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    )
    if task.keep is not None:
        _keep(played, task.keep)
    return played


def _played(task: Task, watch: Watch) -> tuple[Report, tuple[PipelineRun, ...], int]:
    """The report, the runs that a page shows, and how many calls there were."""
    if isinstance(task.scenario, MemoryScenario):
        report = play_memory(task.scenario, task.case.policy, task.case.seed, watch)
        return report, (), report["calls"]
    outcome = play(task.scenario, task.case, watch)
    return outcome.report, page_runs(outcome), len(outcome.records.calls)


def kept(file: Path) -> Played | None:
    """The figures that a task left there, without its runs; None: it has not been played. Raises OSError."""
    return Played(**json.loads(file.read_text(encoding="utf-8")), runs=()) if file.exists() else None


def _keep(played: Played, file: Path) -> None:
    """Whole or not at all."""
    figures = {name: getattr(played, name) for name in ("report", "calls", "cpu_s", "peak_bytes")}
    file.parent.mkdir(parents=True, exist_ok=True)
    half = file.with_name(f"{file.name}.{os.getpid()}")
    half.write_text(json.dumps(figures), encoding="utf-8")
    half.replace(file)

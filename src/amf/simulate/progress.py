"""How far a study is: a bar on a terminal, a plain line a finished run in a pipe. Written to standard error."""

import sys
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from amf.sim.report import Report


class StudyProgress:
    """A context manager around a study of so many runs. `start`: the first line in a pipe."""

    def __init__(self, runs: int, start: str) -> None:
        self._runs = runs
        self._start = start
        self._done = 0
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            columns = (BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(self._count(), total=runs)

    def __enter__(self) -> "StudyProgress":
        if self._bar is not None:
            self._bar.start()
        else:
            print(self._start, file=sys.stderr, flush=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def done(self) -> int:
        return self._done

    def moved(self, shares: Sequence[float]) -> None:
        """`shares`: how much of each run is done, 0 to 1."""
        if self._bar is not None:
            self._bar.update(self._task, completed=sum(shares), description=self._count())

    def finished(self, report: Report, label: str = "") -> None:
        self._done += 1
        if self._bar is None:
            ended = f"{report['completed']} of {report['pipelines']} pipelines completed"
            what = f"{label}, {report['policy']}" if label else str(report["policy"])
            line = f"[{self._done}/{self._runs}] {what}, seed {report['seed']}: {ended}"
            print(line, file=sys.stderr, flush=True)

    def _count(self) -> str:
        return f"{self._done} of {self._runs} runs"

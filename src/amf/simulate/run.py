"""Playing a study's tasks under a progress bar, so that an interrupt or a termination ends every process."""

import contextlib
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from amf.sim.scenario import ScenarioError
from amf.simulate.play import Played, Players, Task
from amf.simulate.progress import StudyProgress


class Interrupted(Exception):
    """By the user or the system. The message says how far the study was."""


def play_tasks(tasks: Sequence[Task], players: Players, start: str) -> list[Played]:
    """In the order of `tasks`; `start` is the first line of progress. Raises ScenarioError, Interrupted, and
    BrokenProcessPool if a process was killed."""
    progress = StudyProgress(len(tasks), start)
    with _terminated_as_interrupted():
        try:
            with progress:
                return players.play(tasks, progress)
        except KeyboardInterrupt:
            raise Interrupted(f"interrupted after {progress.done} of {len(tasks)} runs") from None


def check_writable(*files: tuple[str, Path | None]) -> None:
    """Before minutes are spent. `files`: options and what was given. Raises ScenarioError."""
    for option, file in files:
        if file is not None and (file.is_dir() or not file.parent.is_dir()):
            raise ScenarioError(
                f"{option} {file}: is no file in a folder that exists; make the folder or choose another"
            )


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends the study as an interrupt does, so that no process stays behind."""

    def interrupt(*_: Any) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

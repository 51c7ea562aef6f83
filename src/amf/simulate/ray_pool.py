"""The tasks of a study over a Ray cluster. Loaded only when asked for: Ray is an optional dependency.

Nodes that Ray did not start here need the same version of this package, and recordings at the same path. Each task takes one
CPU of the cluster. Ray's own log stays quiet but for errors.
"""

import logging
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayTaskError

from amf.sim.scenario import ScenarioError
from amf.simulate.play import Played, Task, play_task
from amf.simulate.progress import StudyProgress

LOCAL = "local"


def _play_there(task: Task) -> Played:
    return play_task(task, lambda arrived, total: None)


class RayCluster:
    """The cluster at `address`, or one of `jobs` CPUs that is started on this machine if that is "local"."""

    def __init__(self, address: str, jobs: int) -> None:
        self._address = address
        self._jobs = jobs

    def play(self, tasks: Sequence[Task], progress: StudyProgress) -> list[Played]:
        """In the order of `tasks`. Raises ScenarioError if one cannot be built or no cluster answers."""
        options: dict[str, Any] = {"num_cpus": self._jobs} if self._address == LOCAL else {}
        try:
            ray.init(
                self._address, include_dashboard=False if options else None, logging_level=logging.ERROR, **options
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ScenarioError(
                f"--ray {self._address}: {error}; give HOST:PORT of a cluster's head, or local"
            ) from error
        try:
            remote = ray.remote(_play_there)
            references = [remote.remote(task) for task in tasks]
            return self._await(references, tasks, progress)
        finally:
            ray.shutdown()

    def _await(self, references: Sequence[Any], tasks: Sequence[Task], progress: StudyProgress) -> list[Played]:
        played: dict[int, Played] = {}
        place = {reference: index for index, reference in enumerate(references)}
        pending = list(references)
        while pending:
            done, pending = ray.wait(pending)
            for reference in done:
                index = place[reference]
                played[index] = _result(reference)
                progress.finished(played[index].report, tasks[index].label)
            progress.moved([float(len(played))])
        return [played[index] for index in range(len(tasks))]


def _result(reference: Any) -> Played:
    try:
        found: Played = ray.get(reference)
    except RayTaskError as error:
        cause = error.cause
        raise cause if isinstance(cause, ScenarioError) else error from None
    return found

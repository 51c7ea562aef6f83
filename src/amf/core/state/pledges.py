"""What live pipelines with a deadline are still expected to ask of each pool, by when: the supply that is spoken for.

Kept up to date as pipelines go on, so that asking does not look at every live pipeline. Due times are rounded down to whole
seconds, and a pool's work is kept as a sum for each. A pipeline whose deadline has passed has no claim any more: it is late
whatever happens, and what it delays is only itself.
"""

from collections.abc import Mapping
from math import floor

from amf.core.state.expiries import Expiries
from amf.core.state.pipelines import Pipelines

Pledge = tuple[int, Mapping[str, float]]  # due second, worker-seconds by pool


class Pledges:
    def __init__(self) -> None:
        self._of: dict[str, Pledge] = {}
        self._due: dict[str, dict[int, tuple[int, float]]] = {}  # pool -> due second -> pipelines, worker-seconds
        self._deadlines = Expiries()

    def advance(self, now_s: float) -> list[str]:
        """Returns the runs whose deadlines have passed."""
        late: list[str] = []
        while (run_id := self._deadlines.due(now_s)) is not None:
            self.drop(run_id)
            late.append(run_id)
        return late

    def set(self, run_id: str, deadline_s: float, due_s: float, needed_s: Mapping[str, float]) -> None:
        """The run still needs so many worker-seconds of each pool, all done by `due_s`, to meet its deadline."""
        self.drop(run_id)
        self._deadlines.set(run_id, deadline_s)
        self._of[run_id] = pledge = (floor(due_s), needed_s)
        for pool, seconds in needed_s.items():
            self._add(pool, pledge[0], 1, seconds)

    def drop(self, run_id: str) -> None:
        """It needs nothing more, or nothing can help it."""
        self._deadlines.drop(run_id)
        second, needed_s = self._of.pop(run_id, (0, {}))
        for pool, seconds in needed_s.items():
            self._add(pool, second, -1, -seconds)

    def of_pool(self, pool: str) -> list[tuple[float, float]]:
        """(due at s, worker-seconds), earliest first."""
        return [(float(second), seconds) for second, (_, seconds) in sorted(self._due.get(pool, {}).items())]

    def check_invariants(self, pipelines: Pipelines) -> None:
        self._deadlines.check_invariants(pipelines)
        counted: dict[tuple[str, int], int] = {}
        for run_id, (second, needed_s) in self._of.items():
            assert pipelines.get(run_id) is not None and run_id not in pipelines.silent
            for pool in needed_s:
                counted[pool, second] = counted.get((pool, second), 0) + 1
        assert counted == {(pool, second): n for pool, due in self._due.items() for second, (n, _) in due.items()}

    def _add(self, pool: str, second: int, pipelines: int, seconds: float) -> None:
        due = self._due.setdefault(pool, {})
        before = due.pop(second, (0, 0.0))
        after = (before[0] + pipelines, before[1] + seconds)
        if after[0]:
            due[second] = after
        elif not due:
            del self._due[pool]

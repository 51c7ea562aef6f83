"""Load reports of simulated workers, as a scraper of their metrics would bring them.

With a staleness, every worker is read at each multiple of it, so that what a policy knows is up to that old. Without one a
worker is read `SOON_S` after something happened to it (a call sent, its first token, an end), which is how often llm-d
scrapes, and every `QUEUED_S` while calls wait there, since an engine takes those up without anyone hearing of it. A report
that says what the last one said is not sent.
"""

from collections.abc import Callable, Sequence
from math import inf

from amf.core.events import WorkerReported
from amf.sim.worker_state import WorkerStats

SOON_S = 0.05
QUEUED_S = 1.0

At = Callable[[float, Callable[[], None]], int]  # do this at that time
Look = Callable[[str], WorkerStats | None]  # the worker's truth now; None if it is dead
Tell = Callable[[WorkerReported], None]


class Scraper:
    def __init__(self, staleness_s: float, at: At, look: Look, tell: Tell) -> None:
        self._staleness_s = staleness_s
        self._at = at
        self._look = look
        self._tell = tell
        self._due_s: dict[str, float] = {}  # worker -> when it is read next
        self._said: dict[str, tuple[int, int, float]] = {}

    def begin(self, names: Sequence[str]) -> None:
        """The simulation starts."""
        if self._staleness_s:
            for name in names:
                self._plan(name, self._staleness_s)

    def touched(self, name: str, now_s: float) -> None:
        """Something happened to this worker."""
        if not self._staleness_s:
            self._plan(name, now_s + SOON_S)

    def forget(self, name: str) -> None:
        """The worker starts anew."""
        self._said.pop(name, None)

    def _plan(self, name: str, at_s: float) -> None:
        if at_s < self._due_s.get(name, inf):
            self._due_s[name] = at_s
            self._at(at_s, lambda: self._read(name, at_s))

    def _read(self, name: str, at_s: float) -> None:
        if self._due_s.get(name) != at_s:  # it was read sooner in the meantime
            return
        del self._due_s[name]
        stats = self._look(name)
        if self._staleness_s:
            self._plan(name, at_s + self._staleness_s)
        elif stats is not None and stats.waiting:
            self._plan(name, at_s + QUEUED_S)
        if stats is None:
            return
        said = (stats.running, stats.waiting, stats.kv_used_ratio)
        if said != self._said.get(name):
            self._said[name] = said
            running, waiting, ratio = said
            self._tell(WorkerReported(at_s=at_s, name=name, running=running, waiting=waiting, kv_used_ratio=ratio))

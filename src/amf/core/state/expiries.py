"""When pipelines are given up, for bundles that give them up: one time a run, the earliest first.

Renewing or dropping a run leaves its old entry in the heap, to be passed over when it comes up; the heap is built anew when
such entries outnumber the runs, so it stays within twice their number.
"""

from heapq import heapify, heappop, heappush
from math import inf

from amf.core.state.pipelines import Pipelines

_SLACK = 64  # entries too few to be worth building anew


class Expiries:
    def __init__(self) -> None:
        self._at: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []

    def set(self, run_id: str, at_s: float) -> None:
        """The run is given up at this time; never, if it is infinite."""
        if at_s == self._at.get(run_id, inf):
            return
        if at_s == inf:
            return self.drop(run_id)
        self._at[run_id] = at_s
        heappush(self._heap, (at_s, run_id))
        if len(self._heap) > 2 * len(self._at) + _SLACK:
            self._heap = [(at_s, run_id) for run_id, at_s in self._at.items()]
            heapify(self._heap)
        return None

    def drop(self, run_id: str) -> None:
        self._at.pop(run_id, None)

    def due(self, now_s: float) -> str | None:
        """A run that was to be given up by now, the earliest; None if there is none."""
        return self._heap[0][1] if self.next_s() <= now_s else None

    def next_s(self) -> float:
        """When the next run is to be given up; infinite if none is."""
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heappop(self._heap)
        return self._heap[0][0] if self._heap else inf

    def check_invariants(self, pipelines: Pipelines) -> None:
        entries = set(self._heap)
        assert all((at_s, run_id) in entries and pipelines.get(run_id) for run_id, at_s in self._at.items())
        assert len(self._heap) <= 2 * len(self._at) + _SLACK + 1 or not self._at

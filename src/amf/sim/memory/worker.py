"""One worker's memory over time: hops come, wait in order of arrival, are held, and go.

The first in the queue is tried whenever something came or ended, and nobody passes it. A hop that even an empty memory would
not take is refused, and its pipeline ends there. Figures are means over time from a fifth of the time in which pipelines
arrive to the end of it, so that neither an empty memory nor the last pipelines count.
"""

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any

from amf.sim.memory.layout import Held, Layout, Refusal
from amf.sim.memory.plan import MemoryPipeline

_SETTLED = 0.2
_GB = 1e9
Watch = Callable[[int, int], None]


@dataclass(slots=True)
class _Sums:
    """Over the seconds that count; `attempts` of the first in the queue, and how they failed."""

    seconds: float = 0.0
    live: float = 0.0
    free: float = 0.0
    largest: float = 0.0
    unused: float = 0.0
    attempts: int = 0
    failed: dict[Refusal, int] = field(default_factory=lambda: dict.fromkeys(Refusal, 0))
    started: int = 0
    waited_s: float = 0.0
    tally: dict[str, float] = field(default_factory=dict)


class MemoryWorker:
    def __init__(self, layout: Layout, pipelines: Sequence[MemoryPipeline], page_bytes: float) -> None:
        self.layout = layout
        self._pipelines = pipelines
        self._page_bytes = page_bytes
        self._last_s = pipelines[-1].arrival_s
        self._first_s = _SETTLED * self._last_s
        self._now_s = 0.0
        self._order = count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._queue: deque[tuple[float, int, int]] = deque()  # due, pipeline, hop
        self._live = 0
        self._sums = _Sums()
        self._before: dict[str, float] = {}
        self.refused = 0
        self.completed = 0

    def run(self, watch: Watch) -> dict[str, Any]:
        """Plays all pipelines to their end and says how the memory was used. Raises what `watch` raises."""
        for index, pipeline in enumerate(self._pipelines):
            self._at(pipeline.arrival_s, lambda index=index: self._arrive(index, watch))  # type: ignore[misc]
        self._at(self._first_s, lambda: self._before.update(asdict(self.layout.tally)))
        self._at(self._last_s, lambda: self._sums.tally.update(asdict(self.layout.tally)))
        while self._events:
            at_s, _, happens = heapq.heappop(self._events)
            self._pass(at_s)
            happens()
            self._admit()
        self.layout.check_invariants()
        assert not self._live and not self._queue and self.layout.free_pages == self.layout.total_pages
        return self._figures()

    def _at(self, at_s: float, happens: Callable[[], None]) -> None:
        heapq.heappush(self._events, (at_s, next(self._order), happens))

    def _pass(self, at_s: float) -> None:
        """Time goes on to `at_s`; what of it counts is counted."""
        low, high = max(self._now_s, self._first_s), min(at_s, self._last_s)
        self._now_s = at_s
        if high <= low:
            return
        sums, layout, span_s = self._sums, self.layout, high - low
        sums.seconds += span_s
        sums.live += span_s * self._live
        sums.free += span_s * layout.free_pages
        sums.largest += span_s * layout.largest_run
        sums.unused += span_s * layout.unused_pages

    def _counts(self) -> bool:
        return self._first_s <= self._now_s <= self._last_s

    def _arrive(self, pipeline: int, watch: Watch) -> None:
        watch(pipeline + 1, len(self._pipelines))
        self._queue.append((self._now_s, pipeline, 0))

    def _admit(self) -> None:
        while self._queue:
            due_s, pipeline, index = self._queue[0]
            held = Held(name=f"{pipeline}.{index}", pipeline=pipeline, hop=self._pipelines[pipeline].hops[index])
            refusal = self.layout.admit(held)
            self._sums.attempts += self._counts()
            if refusal and not self._live and not self.layout.fits_empty(held.hop):
                self.refused += 1
                self._queue.popleft()
                continue
            if refusal:
                self._sums.failed[refusal] += self._counts()
                return
            self._queue.popleft()
            if self._counts():
                self._sums.started += 1
                self._sums.waited_s += self._now_s - due_s
            self._start(held, index)

    def _start(self, held: Held, index: int) -> None:
        self._live += 1
        hop, decided_s = held.hop, held.hop.decided_s
        for branch, drawn in enumerate(hop.branches):
            seconds = hop.seconds(drawn)
            if seconds < decided_s or (seconds > decided_s and not self.layout.cancels):
                self._at(self._now_s + seconds, lambda branch=branch: self.layout.branch_ended(held, branch))  # type: ignore[misc]
        self._at(self._now_s + decided_s, lambda: self._decide(held, index))

    def _decide(self, held: Held, index: int) -> None:
        self.layout.decided(held)
        self._live -= 1
        hops = self._pipelines[held.pipeline].hops
        if index + 1 == len(hops):
            self.completed += 1
            return
        due_s = self._now_s + hops[index + 1].gap_s
        self._at(due_s, lambda: self._queue.append((self._now_s, held.pipeline, index + 1)))

    def _figures(self) -> dict[str, Any]:
        sums, total = self._sums, self.layout.total_pages
        spent = {name: value - self._before[name] for name, value in sums.tally.items()}
        left_gb = spent["left_pages"] * self._page_bytes / _GB
        returned = spent["returned_tokens"]
        return {
            "live_groups": sums.live / sums.seconds,
            "hops_per_s": sums.started / sums.seconds,
            "wait_s": sums.waited_s / sums.started if sums.started else None,
            "free_share": sums.free / sums.seconds / total,
            "largest_free_share": sums.largest / sums.free if sums.free else None,
            "failed_contiguity": sums.failed[Refusal.CONTIGUITY] / sums.attempts if sums.attempts else None,
            "failed_room": sums.failed[Refusal.ROOM] / sums.attempts if sums.attempts else None,
            "unused_share": sums.unused / sums.seconds / total,
            "compactions_per_s": spent["compactions"] / sums.seconds,
            "moved_gb_per_s": spent["moved_pages"] * self._page_bytes / _GB / sums.seconds,
            "transfers_per_gb": spent["transfers"] / left_gb if left_gb else None,
            "displaced_share": spent["displaced_tokens"] / returned if returned else None,
            "recomputed_share": spent["recomputed_s"] / sums.seconds if returned else None,
        }

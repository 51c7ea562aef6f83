"""The order in which waiting requests are admitted."""

import heapq

from amf.sim.worker_state import Live


class WaitingQueue:
    """In order of (arrival, id), or of (priority, arrival, id) under priority scheduling. Without priorities a
    preempted request goes to the very front; with them it is ordered like any other."""

    def __init__(self, by_priority: bool) -> None:
        self._by_priority = by_priority
        self._heap: list[tuple[tuple[int, float, str], int, Live]] = []
        self._entry: dict[Live, int] = {}
        self._entries = 0
        self._fronts = 0

    def __len__(self) -> int:
        return len(self._entry)

    def __contains__(self, live: Live) -> bool:
        return live in self._entry

    def push(self, live: Live) -> None:
        priority, arrival_s, request_id = live.urgency
        self._add((priority if self._by_priority else 0, arrival_s, request_id), live)

    def push_front(self, live: Live) -> None:
        if self._by_priority:
            self.push(live)
        else:
            self._fronts += 1
            self._add((-self._fronts, 0.0, ""), live)

    def remove(self, live: Live) -> None:
        del self._entry[live]

    def head(self) -> Live:
        while self._entry.get(self._heap[0][2]) != self._heap[0][1]:  # removed, perhaps pushed again elsewhere
            heapq.heappop(self._heap)
        return self._heap[0][2]

    def _add(self, order: tuple[int, float, str], live: Live) -> None:
        self._entries += 1
        self._entry[live] = self._entries
        heapq.heappush(self._heap, (order, self._entries, live))

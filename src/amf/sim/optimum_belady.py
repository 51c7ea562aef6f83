"""The most that a cache of one pool could have hit, for one order of requests: evict the block used again farthest ahead.

A request needs all of its blocks resident at once. On a tree of prefixes an ancestor's next use is never later than its
descendant's, so what is farthest ahead is always a leaf, the cache stays closed under prefixes, and a hit is a leading
stretch. That also makes it cheap: the resident blocks whose next use is request r are one stretch of r's own path, (low,
high], which evictions shorten from the deep end and requests that pass earlier lengthen at the shallow end. So the state
is two depths for each request to come and a count of the blocks that will never be used again.

Optimality is that of removing, from intervals (use to next use) on a line with a capacity at each point, the one that
reaches farthest. It is per order: who may reorder requests can hit more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import groupby

from amf.sim.optimum_tree import Node, paths
from amf.sim.plan import PromptPlan


@dataclass(slots=True)
class _Stretch:
    low: int = 0
    high: int = 0


def belady_hit_blocks(prompts: Sequence[PromptPlan], capacity_blocks: int) -> list[int]:
    """Leading blocks of each prompt that the best cache of `capacity_blocks` has when the prompts come in this order.
    Raises ValueError for a prompt with more blocks than the cache."""
    found = paths(prompts)
    ahead = _next_uses(found)
    cache = _Cache(capacity_blocks, len(prompts))
    return [cache.serve(number, path[-1].end if path else 0, ahead[number]) for number, path in enumerate(found)]


def _next_uses(found: Sequence[list[Node]]) -> list[list[tuple[int, int]]]:
    """For each request, its path as (depth reached, request that uses these blocks next), shallow first. Blocks never
    used again are not in it."""
    upcoming: dict[Node, int] = {}
    ahead: list[list[tuple[int, int]]] = []
    never = len(found)
    for number in range(never - 1, -1, -1):
        path = found[number]
        uses = groupby(path, key=lambda node: upcoming.get(node, never))
        ahead.append([(list(nodes)[-1].end, use) for use, nodes in uses if use < never])
        upcoming.update(dict.fromkeys(path, number))
    ahead.reverse()
    return ahead


class _Cache:
    def __init__(self, capacity: int, requests: int) -> None:
        self._capacity = capacity
        self._used = 0
        self._dead = 0  # resident blocks without a next use
        self._due = [_Stretch() for _ in range(requests)]
        self._farthest: list[int] = []  # negated requests that may have blocks due

    def serve(self, number: int, blocks: int, ahead: Sequence[tuple[int, int]]) -> int:
        if blocks > self._capacity:
            raise ValueError(f"a prompt of {blocks} blocks in a cache of {self._capacity}")
        due = self._due[number]
        hits, due.high = due.high, 0
        self._make_room(self._used + blocks - hits - self._capacity)
        self._used += blocks - hits
        depth = 0
        for reached, use in ahead:
            later = self._due[use]
            if later.high <= later.low:
                heappush(self._farthest, -use)
            later.low, later.high = depth, max(later.high, reached)
            depth = reached
        self._dead += blocks - depth
        return hits

    def _make_room(self, excess: int) -> None:
        if excess <= 0:
            return
        self._used -= excess
        taken = min(excess, self._dead)
        self._dead -= taken
        excess -= taken
        while excess:
            due = self._due[-self._farthest[0]]
            taken = min(excess, max(0, due.high - due.low))
            due.high -= taken
            excess -= taken
            if due.high <= due.low:
                heappop(self._farthest)

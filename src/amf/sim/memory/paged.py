"""Paged memory: any free page serves any sequence, and what is free may still be warm.

As in vLLM: pages of an ended call stay findable until they are taken for another; pages without content are taken first, then
those released longest ago, a sequence's end before its beginning. A losing branch's pages stay like all others, since an
engine does not know that nobody will ask for them. So nothing ever fails for want of a run, and the price of a branch is
another: it takes pages of contexts that come back.

`deferred`: what an ended branch held is kept until the decision. `lingers`: losers run to their end, as plain requests would.
They keep their own pages; that they also read the shared ones is left out, since the winner's return soon holds those again.

Pages have places here, so that what a transfer to another tier would take can be counted: an operation for each run of
neighbours, in whatever order they are filled. Siblings grow side by side, so they take pages in turn; groups do not, which
flatters paging. So does that a call takes its true output from the start: nothing is ever preempted.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass

import numpy as np

from amf.core.cost import prefill_s
from amf.sim.memory.layout import Held, Refusal, Tally
from amf.sim.memory.plan import PROFILE, Hop, whole_pages


@dataclass(slots=True)
class _Table:
    shared: list[int]
    own: list[list[int]]


class PagedLayout:
    def __init__(self, total_pages: int, page_tokens: int, deferred: bool = False, lingers: bool = False) -> None:
        self.total_pages = total_pages
        self.tally = Tally()
        self.cancels = not lingers
        self._page_tokens = page_tokens
        self._deferred = deferred
        self._blank = deque(range(total_pages))
        self._warm: OrderedDict[str, list[int]] = OrderedDict()  # released longest ago first
        self._warm_pages = 0
        self._tables: dict[str, _Table] = {}

    @property
    def free_pages(self) -> int:
        return len(self._blank) + self._warm_pages

    @property
    def largest_run(self) -> int:
        return self.free_pages

    @property
    def unused_pages(self) -> int:
        return 0

    def fits_empty(self, hop: Hop) -> bool:
        shared, own = whole_pages(hop, self._page_tokens)
        return shared + sum(own) <= self.total_pages

    def admit(self, held: Held) -> Refusal | None:
        shared, own = whole_pages(held.hop, self._page_tokens)
        if shared + sum(own) > self.free_pages:
            return Refusal.ROOM
        warm = self._warm.pop(_context(held), [])
        self._warm_pages -= len(warm)
        self._blank.extend(warm[shared:])
        del warm[shared:]
        self._count_return(held.hop, len(warm))
        context = warm + self._take(shared - len(warm))
        self._tables[held.name] = _Table(context, _in_turn(self._take(sum(own)), own))
        return None

    def branch_ended(self, held: Held, index: int) -> None:
        held.ended[index] = None
        if index != held.hop.winner and not self._deferred:
            self._let_go(held, index)

    def decided(self, held: Held) -> None:
        table = self._tables[held.name]
        for index in range(len(held.hop.branches)):
            if index != held.hop.winner and (self.cancels or index in held.ended):
                self._let_go(held, index)
        left = table.shared + table.own[held.hop.winner]
        table.shared, table.own[held.hop.winner] = [], []
        self.tally.transfers += _runs(left)
        self.tally.left_pages += len(left)
        self._release(_context(held), left)
        self._forget(held)

    def check_invariants(self) -> None:
        """Raises AssertionError unless every page is in one place."""
        held = [page for each in self._tables.values() for part in (each.shared, *each.own) for page in part]
        warm = [page for pages in self._warm.values() for page in pages]
        assert len(warm) == self._warm_pages
        assert sorted([*held, *warm, *self._blank]) == list(range(self.total_pages))

    def _let_go(self, held: Held, index: int) -> None:
        """Of a branch that is not the winner."""
        table = self._tables[held.name]
        self._release(f"{held.name}/{index}", table.own[index])
        table.own[index] = []
        self._forget(held)

    def _forget(self, held: Held) -> None:
        table = self._tables[held.name]
        if not table.shared and not any(table.own):
            del self._tables[held.name]

    def _release(self, name: str, pages: list[int]) -> None:
        if pages:
            self._warm[name] = pages
            self._warm_pages += len(pages)

    def _take(self, pages: int) -> list[int]:
        """Blank ones first, then the ends of what was released longest ago. So many are free."""
        taken = [self._blank.popleft() for _ in range(min(pages, len(self._blank)))]
        while len(taken) < pages:
            name, oldest = next(iter(self._warm.items()))
            some = min(pages - len(taken), len(oldest))
            taken += reversed(oldest[-some:])
            del oldest[-some:]
            self._warm_pages -= some
            if not oldest:
                del self._warm[name]
        return taken

    def _count_return(self, hop: Hop, warm_pages: int) -> None:
        known = hop.known_tokens // self._page_tokens * self._page_tokens
        lost = max(known - warm_pages * self._page_tokens, 0)
        self.tally.returned_tokens += known
        self.tally.displaced_tokens += lost
        self.tally.recomputed_s += prefill_s(PROFILE, lost, known - lost)


def _context(held: Held) -> str:
    return f"context {held.pipeline}"


def _in_turn(pages: list[int], counts: list[int]) -> list[list[int]]:
    """Dealt out one by one until each has as many as it should."""
    dealt: list[list[int]] = [[] for _ in counts]
    at = 0
    for turns in range(max(counts)):
        for own, count in zip(dealt, counts, strict=True):
            if turns < count:
                own.append(pages[at])
                at += 1
    return dealt


def _runs(pages: list[int]) -> int:
    """Of neighbouring places."""
    return int((np.diff(np.sort(np.asarray(pages))) > 1).sum()) + bool(pages)

"""The reservation ledger of one worker: which pages its calls hold and may still need, in ranges.

Tokens are rounded to pages. A call holds pages for its prompt and for the growth that is expected of it. The calls of a branch
group share their context, which is charged once: in whole pages, while what is left of its last page is each call's own. A
group reserves together, all or nothing: one range with the shared pages first and the siblings' after them, side by side, so
that what siblings give back is one range, or one on each side of a winner. Where there is no such range and the options allow
it, the shared pages lie in a few ranges, and so do the siblings'.

A call ends once: it finishes, fails, is cancelled, loses to a commit, is discarded, or goes with its worker. Its own pages come
back then. With `deferred` they wait for the group's decision, unless nobody is left to decide about. The shared pages come back
with the last call that needs them. Every page is thus held by a running call, by the group of one, or by a group that awaits a
decision; `close` ends that whatever it is, and nothing else can be held. News of a call or group that is not there changes
nothing.

These are books. A paged engine puts pages where it likes, and the ledger neither knows nor changes where; it has no holes to
mend there (docs/fragmentation.md). Only where the fabric owns the address space (slots, registered regions) are ranges places,
and `compact` is for those.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from amf.sim.pages.compaction import cheapest_slide
from amf.sim.pages.extents import reserve_extents
from amf.sim.pages.ranges import Allocator, FreeRuns, Range, joined


@dataclass(frozen=True, slots=True)
class Need:
    """`tokens` of a call's own, after what it shares; `growth_tokens` that are expected on top. Raises ValueError if both are
    0: a call that needs no page has nothing to reserve."""

    tokens: int
    growth_tokens: int = 0

    def __post_init__(self) -> None:
        if self.tokens < 0 or self.growth_tokens < 0 or not self.tokens + self.growth_tokens:
            raise ValueError(f"{self}: tokens are whole numbers, at least 1 together")


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerOptions:
    """`together`: a group lies in one range. `extents`: where it finds none, the most ranges for what is shared (then each
    sibling may lie apart too); 1: it waits. `deferred`: release waits for the group's decision."""

    page_tokens: int = 16
    together: bool = True
    extents: int = 1
    deferred: bool = False


_DEFAULT: Final = LedgerOptions()


@dataclass(frozen=True, slots=True)
class Released:
    """Calls that ended, and what came back: ranges in order, those that touch as one."""

    calls: tuple[str, ...] = ()
    ranges: tuple[Range, ...] = ()


@dataclass(slots=True)
class _Call:
    group: str
    own: list[Range]
    before_tokens: int  # of what is shared, in its own first page


@dataclass(slots=True)
class _Group:
    shared: list[Range]
    before_tokens: int
    decided: bool
    running: dict[str, None] = field(default_factory=dict)
    waiting: dict[str, list[Range]] = field(default_factory=dict)  # ended ones whose release is deferred
    finished: dict[str, None] = field(default_factory=dict)  # those of them that may be committed


class ReservationLedger:
    def __init__(self, allocator: Allocator, options: LedgerOptions = _DEFAULT) -> None:
        if options.extents > 1 and not isinstance(allocator, FreeRuns):
            raise ValueError(f"{type(allocator).__name__} gives no runs to lie in: set extents = 1")
        self.allocator = allocator
        self.options = options
        self._calls: dict[str, _Call] = {}
        self._groups: dict[str, _Group] = {}

    @property
    def running(self) -> tuple[str, ...]:
        """Calls that have not ended, as launched."""
        return tuple(self._calls)

    def ranges_of(self, call_id: str) -> tuple[Range, ...]:
        """All that the call reads, shared pages included; empty for one that is not there."""
        call = self._calls.get(call_id)
        return () if call is None else joined((*self._groups[call.group].shared, *call.own))

    def pages_of(self, shared_tokens: int, needs: Iterable[Need]) -> tuple[int, list[int]]:
        """Whole pages of what is shared, and those of each call's own."""
        size = self.options.page_tokens
        before = shared_tokens % size
        return shared_tokens // size, [-(-(before + need.tokens + need.growth_tokens) // size) for need in needs]

    def reserve(self, call_id: str, need: Need) -> bool:
        """A call of no group. False: there is no room, or no range."""
        return self._launch(call_id, 0, {call_id: need}, decided=True)

    def reserve_group(self, group: str, shared_tokens: int, needs: Mapping[str, Need]) -> bool:
        """All calls of a group that start together. Raises ValueError if the group or one of the calls is there."""
        return self._launch(group, shared_tokens, needs, decided=False)

    def join(self, group: str, call_id: str, need: Need) -> bool:
        """Another call on what the group shares. False: no room, no range, or no such group any more."""
        there = self._groups.get(group)
        if there is None or call_id in self._calls:
            return False
        own = self._find(-(-(there.before_tokens + need.tokens + need.growth_tokens) // self.options.page_tokens))
        if own is None:
            return False
        self._calls[call_id] = _Call(group, list(own), there.before_tokens)
        there.running[call_id] = None
        return True

    def grow(self, call_id: str, tokens: int) -> bool:
        """The call has `tokens` of its own by now. What is beyond its reservation is reserved as well; False if there is no
        room for it, or no such call."""
        call = self._calls.get(call_id)
        if call is None:
            return False
        held = sum(each.pages for each in call.own)
        more = -(-(call.before_tokens + tokens) // self.options.page_tokens) - held
        found = self._find(more) if more > 0 else ()
        call.own += found or ()
        return found is not None

    def finish(self, call_id: str) -> Released:
        """It has an answer, which a decision may be about."""
        return self._end(call_id, finished=True)

    def fail(self, call_id: str) -> Released:
        """It ended without an answer, or was cancelled."""
        return self._end(call_id, finished=False)

    def commit(self, group: str, winners: Collection[str]) -> Released:
        """Winners that run keep their pages and what is shared; all else of the group ends and comes back."""
        there = self._groups.get(group)
        if there is None:
            return Released()
        there.decided = True
        return self._drop(group, [*(each for each in there.running if each not in winners), *there.waiting])

    def discard(self, group: str, calls: Collection[str]) -> Released:
        """These have lost; the others go on."""
        there = self._groups.get(group)
        if there is None:
            return Released()
        return self._drop(group, [each for each in (*there.running, *there.waiting) if each in calls])

    def close(self, group: str) -> Released:
        """All of the group ends, decided or not."""
        return self.commit(group, ())

    def lose(self) -> Released:
        """The worker is gone, and all that was on it."""
        every = [self.close(group) for group in list(self._groups)]
        return Released(
            tuple(call for each in every for call in each.calls), joined(part for each in every for part in each.ranges)
        )

    def compact(self, pages: int) -> int | None:
        """Slides what is reserved together until a run of so many pages is free, and says how many pages moved; None if that
        many are not free. Raises ValueError if the allocator's ranges cannot move."""
        if not isinstance(self.allocator, FreeRuns):
            raise ValueError(f"{type(self.allocator).__name__} cannot move what it gave out")
        slide = cheapest_slide(self.allocator.runs(), pages)
        if slide is None:
            return None
        window = slide.window
        for run in self.allocator.runs():
            if window.start <= run.start < window.end:
                self.allocator.take(run)
        every = list(self._held())
        inside = sorted(
            (part, owner, index)
            for owner, held in enumerate(every)
            for index, part in enumerate(held)
            if window.start <= part.start < window.end
        )
        at = window.start
        for part, owner, index in inside:
            every[owner][index] = Range(at, part.pages)
            at += part.pages
        self.allocator.free(Range(at, window.end - at))
        return slide.pages

    def check_invariants(self) -> None:
        """Raises AssertionError. Pages are conserved, no two ranges overlap, nothing is held for nobody."""
        self.allocator.check_invariants()
        parts = sorted(part for held in self._held() for part in held)
        assert all(a.end <= b.start for a, b in pairwise(parts)), "ranges overlap"
        held_pages = sum(part.pages for part in parts)
        assert held_pages + self.allocator.free_pages + self.allocator.wasted_pages == self.allocator.total
        assert set(self._calls) == {call for group in self._groups.values() for call in group.running}
        for group in self._groups.values():
            assert group.running or group.finished, "a group without a call or a decision to come is still there"
            assert not (group.decided and group.waiting) and set(group.finished) <= set(group.waiting)
            assert self.options.deferred or not group.waiting

    def _held(self) -> Iterable[list[Range]]:
        yield from (call.own for call in self._calls.values())
        for group in self._groups.values():
            yield group.shared
            yield from group.waiting.values()

    def _launch(self, group: str, shared_tokens: int, needs: Mapping[str, Need], decided: bool) -> bool:
        if group in self._groups or not needs or any(call in self._calls for call in needs):
            raise ValueError(f"{group!r} or one of its calls has reserved already, or it has no calls")
        shared, own = self.pages_of(shared_tokens, needs.values())
        found = self._range_of(shared, own) if self.options.together else None
        if found is None and (self.options.extents > 1 or not self.options.together):
            found = self._ranges_of(shared, own)
        if found is None:
            return False
        before = shared_tokens % self.options.page_tokens
        self._groups[group] = _Group(found[0], before, decided, dict.fromkeys(needs))
        for call_id, part in zip(needs, found[1], strict=True):
            self._calls[call_id] = _Call(group, part, before)
        return True

    def _range_of(self, shared: int, own: list[int]) -> tuple[list[Range], list[list[Range]]] | None:
        """One range for all."""
        whole = self.allocator.reserve(shared + sum(own))
        return None if whole is None else (_cut(whole, [shared])[0], _cut(whole.part(shared, sum(own)), own))

    def _ranges_of(self, shared: int, own: list[int]) -> tuple[list[Range], list[list[Range]]] | None:
        """The siblings side by side if they may and can, else each apart; what is shared in a few ranges."""
        side = self.allocator.reserve(sum(own)) if self.options.together else None
        parts: list[list[Range]] = _cut(side, own) if side is not None else []
        if side is None:
            for pages in own:
                alone = self.allocator.reserve(pages)
                if alone is None:
                    self._give_back(part for each in parts for part in each)
                    return None
                parts.append([alone])
        context = self._find(shared)
        if context is None:
            self._give_back(part for each in parts for part in each)
            return None
        return list(context), parts

    def _find(self, pages: int) -> tuple[Range, ...] | None:
        """As many ranges as the options allow."""
        if not pages:
            return ()
        if self.options.extents > 1 and isinstance(self.allocator, FreeRuns):
            return reserve_extents(self.allocator, pages, self.options.extents)
        one = self.allocator.reserve(pages)
        return None if one is None else (one,)

    def _end(self, call_id: str, finished: bool) -> Released:
        call = self._calls.get(call_id)
        if call is None:
            return Released()
        group = self._groups[call.group]
        if group.decided or not self.options.deferred:
            return self._drop(call.group, [call_id])
        del self._calls[call_id], group.running[call_id]
        group.waiting[call_id] = call.own
        if finished:
            group.finished[call_id] = None
        left = self._drop(call.group, [])
        return Released((call_id,), left.ranges)

    def _drop(self, name: str, calls: Iterable[str]) -> Released:
        """Ends those that run; gives back what they hold, and all of the group's if nobody is left."""
        group, ended, back = self._groups[name], list[str](), list[Range]()
        for call_id in calls:
            if call_id in group.running:
                del group.running[call_id]
                back += self._calls.pop(call_id).own
                ended.append(call_id)
            else:
                back += group.waiting.pop(call_id)
                group.finished.pop(call_id, None)
        if not group.running and not group.finished:
            back += [*group.shared, *(part for each in group.waiting.values() for part in each)]
            del self._groups[name]
        return Released(tuple(ended), self._give_back(back))

    def _give_back(self, parts: Iterable[Range]) -> tuple[Range, ...]:
        found = joined(parts)
        for each in found:
            self.allocator.free(each)
        return found


def _cut(whole: Range, sizes: list[int]) -> list[list[Range]]:
    """Neighbouring parts from its beginning on, one for each size; none for a size of 0."""
    parts, at = list[list[Range]](), 0
    for pages in sizes:
        parts.append([whole.part(at, pages)] if pages else [])
        at += pages
    return parts

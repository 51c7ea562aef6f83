"""Whatever is reserved, given back in parts, launched, decided or lost, in whatever order: pages are conserved, ranges never
overlap, nothing leaks, and every call ends once."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from amf.sim.pages.buddy import Buddy
from amf.sim.pages.compaction import cheapest_slide
from amf.sim.pages.ledger import LedgerOptions, Need, Released, ReservationLedger
from amf.sim.pages.ranges import Allocator, BestFit, FirstFit, FreeRuns, Range

PAGE = 4
KINDS = (FirstFit, BestFit, Buddy)
WHO = st.integers(0, 30)
STEPS = st.lists(st.tuples(st.booleans(), st.integers(1, 40), st.integers(0, 10_000)), max_size=50)


def runs_of(taken: list[bool]) -> list[tuple[int, int]]:
    """(length, start) of the free runs of a line of single pages."""
    edges = [True, *taken, True]
    starts = [i for i in range(len(taken)) if not edges[i + 1] and edges[i]]
    ends = [i + 1 for i in range(len(taken)) if not edges[i + 1] and edges[i + 2]]
    return [(end - start, start) for start, end in zip(starts, ends, strict=True)]


def expected(kind: type[Allocator], taken: list[bool], pages: int) -> int | None:
    fits = [(length, start) for length, start in runs_of(taken) if length >= pages]
    if not fits:
        return None
    return min(fits)[1] if kind is BestFit else min(start for _, start in fits)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(KINDS), st.integers(1, 130), STEPS)
def test_an_allocator_does_what_a_line_of_single_pages_does(kind: type[Allocator], total: int, steps) -> None:
    allocator, taken, held = kind(total), [False] * total, list[Range]()
    for reserves, pages, where in steps:
        if reserves:
            largest = allocator.largest_run
            found = allocator.reserve(pages)
            assert (found is not None) == (pages <= largest)
            if kind is not Buddy:
                assert (found.start if found else None) == expected(kind, taken, pages)
            if found is not None:
                assert found.pages == pages and not any(taken[found.start : found.end])
                taken[found.start : found.end] = [True] * pages
                held.append(found)
        elif held:
            whole = held.pop(where % len(held))
            low = where % whole.pages
            part = whole.part(low, min(pages, whole.pages - low))
            allocator.free(part)
            taken[part.start : part.end] = [False] * part.pages
            held += [Range(a, b - a) for a, b in ((whole.start, part.start), (part.end, whole.end)) if a < b]
            with pytest.raises(ValueError, match="is not reserved"):
                allocator.free(part)
        allocator.check_invariants()
        assert allocator.free_pages + allocator.wasted_pages == taken.count(False)
    for each in held:
        allocator.free(each)
    assert allocator.free_pages == total and allocator.wasted_pages == 0


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(1, 60))
def test_no_slide_moves_less(taken: list[bool], pages: int) -> None:
    """Against every window between the beginning of one free run and the end of another."""
    runs = [Range(start, length) for length, start in runs_of(taken)]
    windows = [taken[a.start : b.end] for a in runs for b in runs if a.start <= b.start]
    enough = [window.count(True) for window in windows if window.count(False) >= pages]
    found = cheapest_slide(runs, pages)
    assert (found and found.pages) == (min(enough) if enough else None)
    if found:
        window = taken[found.window.start : found.window.end]
        assert window.count(False) >= pages and window.count(True) == found.pages


class LedgerLaws(RuleBasedStateMachine):
    """The model: what each call and group should hold, by the rules of the ledger's essay."""

    @initialize(
        kind=st.sampled_from(KINDS),
        total=st.integers(20, 90),
        deferred=st.booleans(),
        together=st.booleans(),
        extents=st.sampled_from([1, 3]),
    )
    def begin(self, kind: type[Allocator], total: int, deferred: bool, together: bool, extents: int) -> None:
        options = LedgerOptions(
            page_tokens=PAGE, together=together, extents=1 if kind is Buddy else extents, deferred=deferred
        )
        self.ledger = ReservationLedger(kind(total), options)
        self.number = 0
        self.launched: list[str] = []
        self.ends: Counter[str] = Counter()
        self.own: dict[str, int] = {}  # pages of each call that holds some
        self.rest: dict[str, int] = {}  # of its group's shared tokens
        self.groups: dict[str, dict[str, str]] = {}  # group -> call -> running, finished, failed
        self.shared: dict[str, int] = {}
        self.decided: set[str] = set()

    # --- what happens ---

    @rule(
        shared=st.integers(0, 60),
        sizes=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 20)), min_size=1, max_size=4),
    )
    def launch(self, shared: int, sizes: list[tuple[int, int]]) -> None:
        group = self.name()
        needs = {self.name(): Need(*size) for size in sizes}
        if self.ledger.reserve_group(group, shared, needs):
            self.add(group, shared, needs)

    @rule(tokens=st.integers(1, 90))
    def single(self, tokens: int) -> None:
        name = self.name()
        if self.ledger.reserve(name, Need(tokens)):
            self.add(name, 0, {name: Need(tokens)})
            self.decided.add(name)

    @rule(who=WHO, tokens=st.integers(1, 30))
    def join(self, who: int, tokens: int) -> None:
        group, call = self.pick(self.groups, who), self.name()
        if self.ledger.join(group, call, Need(tokens)):
            self.groups[group][call] = "running"
            self.launched.append(call)
            self.rest[call] = self.rest[next(iter(self.groups[group]))]
            self.own[call] = self.pages(self.rest[call] + tokens)

    @rule(who=WHO, tokens=st.integers(0, 90))
    def grow(self, who: int, tokens: int) -> None:
        call = self.pick(self.ledger.running, who)
        if self.ledger.grow(call, tokens):
            self.own[call] = max(self.own[call], self.pages(self.rest[call] + tokens))

    @rule(who=WHO, finishes=st.booleans(), late=st.integers(0, 5))
    def end(self, who: int, finishes: bool, late: int) -> None:
        """Perhaps of one that has ended: then nothing happens."""
        call = self.pick(self.launched if late == 5 else self.ledger.running, who)
        group = next((name for name, calls in self.groups.items() if calls.get(call) == "running"), None)
        self.told(self.ledger.finish(call) if finishes else self.ledger.fail(call), [call] if group else [])
        if group is not None:
            waits = self.ledger.options.deferred and group not in self.decided
            self.groups[group][call] = ("finished" if finishes else "failed") if waits else "gone"
            self.settle(group)

    @rule(who=WHO, mask=st.integers(0, 15))
    def commit(self, who: int, mask: int) -> None:
        group = self.pick(self.groups, who)
        winners = self.some(group, mask)
        calls = self.groups.get(group, {})
        losers = [call for call, state in calls.items() if state == "running" and call not in winners]
        self.told(self.ledger.commit(group, winners), losers)
        if group in self.groups:
            self.decided.add(group)
            self.groups[group] = {c: s if s == "running" and c in winners else "gone" for c, s in calls.items()}
            self.settle(group)

    @rule(who=WHO, mask=st.integers(0, 15))
    def discard(self, who: int, mask: int) -> None:
        group = self.pick(self.groups, who)
        lost = self.some(group, mask)
        calls = self.groups.get(group, {})
        self.told(self.ledger.discard(group, lost), [c for c in lost if calls[c] == "running"])
        if group in self.groups:
            self.groups[group] = {call: "gone" if call in lost else state for call, state in calls.items()}
            self.settle(group)

    @rule(pages=st.integers(1, 90))
    def compact(self, pages: int) -> None:
        if not isinstance(self.ledger.allocator, FreeRuns):
            return
        free = self.ledger.allocator.free_pages
        held = {call: sum(part.pages for part in self.ledger.ranges_of(call)) for call in self.ledger.running}
        moved = self.ledger.compact(pages)
        assert (moved is not None) == (pages <= free) and self.ledger.allocator.free_pages == free
        assert moved is None or self.ledger.allocator.largest_run >= pages
        assert held == {call: sum(part.pages for part in self.ledger.ranges_of(call)) for call in self.ledger.running}

    @rule(really=st.integers(0, 5))
    def worker_lost(self, really: int) -> None:
        if really == 0:
            running = list(self.ledger.running)
            self.told(self.ledger.lose(), running)
            self.groups.clear()
            assert self.ledger.allocator.free_pages == self.ledger.allocator.total

    # --- what must hold ---

    @invariant()
    def books_balance(self) -> None:
        if not hasattr(self, "ledger"):
            return
        self.ledger.check_invariants()
        allocator = self.ledger.allocator
        held = sum(self.shared[group] for group in self.groups)
        held += sum(self.own[c] for calls in self.groups.values() for c, state in calls.items() if state != "gone")
        assert allocator.total - allocator.free_pages - allocator.wasted_pages == held

    @invariant()
    def every_call_ends_once(self) -> None:
        if hasattr(self, "ledger"):
            running = set(self.ledger.running)
            assert all(self.ends[call] == (call not in running) for call in self.launched)

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            for group in list(self.groups):
                self.told(
                    self.ledger.close(group), [c for c, state in self.groups.pop(group).items() if state == "running"]
                )
            self.every_call_ends_once()
            assert self.ledger.allocator.free_pages == self.ledger.allocator.total

    # --- the model ---

    def name(self) -> str:
        self.number += 1
        return str(self.number)

    @staticmethod
    def pages(tokens: int) -> int:
        return -(-tokens // PAGE)

    @staticmethod
    def pick(names, who: int) -> str:
        return list(names)[who % len(names)] if names else "nobody"

    def some(self, group: str, mask: int) -> list[str]:
        calls = self.groups.get(group, {})
        return [call for index, call in enumerate(calls) if mask >> index & 1 and calls[call] != "gone"]

    def add(self, group: str, shared: int, needs: dict[str, Need]) -> None:
        self.groups[group] = dict.fromkeys(needs, "running")
        self.shared[group] = shared // PAGE
        self.launched += needs
        for call, need in needs.items():
            self.rest[call] = shared % PAGE
            self.own[call] = self.pages(shared % PAGE + need.tokens + need.growth_tokens)

    def told(self, released: Released, calls: list[str]) -> None:
        assert sorted(released.calls) == sorted(calls)
        self.ends.update(released.calls)

    def settle(self, group: str) -> None:
        """A group is gone with its last call that runs or awaits a decision."""
        if not {"running", "finished"} & set(self.groups[group].values()):
            del self.groups[group]


TestLedgerLaws = LedgerLaws.TestCase
TestLedgerLaws.settings = settings(max_examples=400, stateful_step_count=40, deadline=None)

"""One worker's memory: the pipelines it is offered, each layout on hand-made hops, and all of them on a small run."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amf.sim.memory.layout import Held, Layout, Refusal
from amf.sim.memory.mixed import LargePages, OneSize, TwoPools, parts_of
from amf.sim.memory.paged import PagedLayout
from amf.sim.memory.plan import Branch, Hop, MemoryPipeline, draw
from amf.sim.memory.ranges import RangeLayout
from amf.sim.memory.run import LAYOUTS, play_memory
from amf.sim.memory.scenario import MemoryScenario, MemoryWorkload
from amf.sim.memory.worker import MemoryWorker
from amf.sim.pages.buddy import Buddy
from amf.sim.pages.ledger import LedgerOptions
from amf.sim.pages.ranges import BestFit, FirstFit

PAGE = 16
HYBRID = "gemma-3-27b"
SMALL = MemoryWorkload(pipelines=120, branches=(2, 8))


def branch(pages: int, output_pages: int = 1, bound_pages: int = 1, works: bool = True) -> Branch:
    """`pages` in all, of which so many are output; `bound_pages` of output were declared."""
    own = (pages - output_pages) * PAGE
    return Branch(own_tokens=own, output_tokens=output_pages * PAGE, bound_tokens=bound_pages * PAGE, works=works)


def hop(context_pages: int, *branches: Branch, known_pages: int = 0, first_wins: bool = True) -> Hop:
    return Hop(
        context_tokens=context_pages * PAGE,
        known_tokens=known_pages * PAGE,
        branches=branches,
        first_wins=first_wins,
        test_s=1.0,
        gap_s=1.0,
    )


def held(name: str, what: Hop, pipeline: int = 0) -> Held:
    return Held(name=name, pipeline=pipeline, hop=what)


def live_groups(layout: str, workload: MemoryWorkload = SMALL, seed: int = 7, **scenario: object) -> float:
    report = play_memory(MemoryScenario(workload=workload, **scenario), layout, seed, lambda *_: None)  # type: ignore[arg-type]
    return report["live_groups"]


# --- what is offered ---


def test_the_same_seed_offers_the_same_contexts_and_first_branches_whatever_launches():
    def first(workload: MemoryWorkload) -> list[list[tuple[int, Branch]]]:
        pipelines = draw(MemoryScenario(workload=workload), 3)
        return [[(each.context_tokens, each.branches[0]) for each in pipeline.hops] for pipeline in pipelines]

    few, many = MemoryWorkload(pipelines=30, grouped=0.0), MemoryWorkload(pipelines=30, grouped=1.0, branches=(8, 8))
    assert first(few) == first(many) != first(MemoryWorkload(pipelines=30, context_tokens=6_000))
    assert {len(each.branches) for pipeline in draw(MemoryScenario(workload=many), 3) for each in pipeline.hops} == {8}


def test_pipelines_arrive_sooner_under_more_load_and_branches_may_be_left_out_of_it():
    def last_s(**keys: object) -> float:
        return draw(MemoryScenario(workload=MemoryWorkload(pipelines=50, **keys)), 3)[-1].arrival_s  # type: ignore[arg-type]

    assert last_s(load=0.55) == pytest.approx(2 * last_s(load=1.1))
    alone = last_s(grouped=0.0)
    assert last_s(grouped=1.0, load_without_branches=True) == pytest.approx(alone) != last_s(grouped=1.0)


def test_the_first_success_wins_or_the_best_after_a_test():
    three = (branch(4, 3, works=False), branch(3, 2), branch(6, 5))
    first, best = hop(100, *three), hop(100, *three, first_wins=False)
    assert first.winner == 1 and first.decided_s == pytest.approx(first.seconds(three[1]))
    assert best.winner == 2 and best.decided_s == pytest.approx(best.seconds(three[2]) + 1.0)
    assert hop(100, branch(4, 3, works=False), branch(3, 2, works=False)).winner == 0, "none works: the last to end"


# --- paged ---


def test_pages_need_no_run_and_a_context_is_counted_once():
    layout = PagedLayout(20, PAGE)
    one, two = held("a", hop(5, branch(2), branch(3)), 1), held("b", hop(5, branch(5)), 2)
    assert layout.admit(one) is None and layout.admit(two) is None and layout.free_pages == 0
    assert layout.admit(held("c", hop(1, branch(1)), 3)) is Refusal.ROOM
    layout.branch_ended(one, 1)
    assert layout.free_pages == 3 and layout.admit(held("c", hop(1, branch(2)), 3)) is None
    layout.check_invariants()


@pytest.mark.parametrize(("taken", "displaced"), [(12, 0), (13, 2)])
def test_what_comes_back_finds_what_is_left_of_its_context(taken: int, displaced: int):
    layout = PagedLayout(20, PAGE)
    first, other = held("a", hop(8, branch(2)), 1), held("b", hop(taken - 2, branch(2)), 2)
    for each in (first, other):  # the other takes 10 blank pages, then the end of what the first left
        layout.admit(each)
        layout.decided(each)
    known = 8 if not displaced else 9
    assert layout.free_pages == 20 and layout.tally.left_pages == 10 + taken
    assert layout.admit(held("a2", hop(known, branch(1), known_pages=known), 1)) is None
    assert (layout.tally.returned_tokens, layout.tally.displaced_tokens) == (known * PAGE, displaced * PAGE)
    assert (layout.tally.recomputed_s > 0) == bool(displaced)
    layout.check_invariants()


@pytest.mark.parametrize(("deferred", "lingers", "after"), [(False, False, 5), (True, False, 0), (False, True, 5)])
def test_a_failed_branch_gives_back_now_or_at_the_decision(deferred: bool, lingers: bool, after: int):
    layout = PagedLayout(20, PAGE, deferred, lingers)
    group = held("a", hop(8, branch(2), branch(5), branch(5)), 1)
    layout.admit(group)
    layout.branch_ended(group, 1)
    assert layout.free_pages == after
    layout.decided(group)
    assert layout.free_pages == (15 if lingers else 20)
    if lingers:
        layout.branch_ended(group, 2)
    assert layout.free_pages == 20
    layout.check_invariants()


def test_siblings_that_grow_in_turn_are_scattered_and_a_single_call_is_not():
    together, alone = PagedLayout(100, PAGE), PagedLayout(100, PAGE)
    for layout, what in ((together, hop(10, branch(6), branch(6), branch(6))), (alone, hop(10, branch(6)))):
        one = held("a", what)
        layout.admit(one)
        layout.decided(one)
    assert alone.tally.transfers == 1 and together.tally.transfers == 1 + 5  # the first page touches the context


# --- contiguous ---


def ranges(pages: int, **options: object) -> RangeLayout:
    compacts = bool(options.pop("compacts", False))
    return RangeLayout(BestFit, pages, LedgerOptions(page_tokens=PAGE, **options), compacts=compacts)  # type: ignore[arg-type]


def test_enough_pages_may_be_free_and_no_run():
    for layout, refusal in (
        (ranges(30), Refusal.CONTIGUITY),
        (ranges(30, compacts=True), None),
        (ranges(30, extents=2), None),
    ):
        admitted = [held(str(i), hop(9, branch(1)), i) for i in range(3)]
        assert [layout.admit(each) for each in admitted] == [None] * 3
        layout.decided(admitted[0])
        layout.decided(admitted[2])
        assert layout.admit(held("large", hop(15, branch(2), branch(2)))) is refusal
        assert layout.admit(held("larger", hop(30, branch(1)))) is Refusal.ROOM
        assert layout.tally.moved_pages == (10 if layout.tally.compactions else 0)
        layout.check_invariants()


def test_a_slot_has_its_own_copy_of_the_context_and_of_the_declared_bound():
    group = hop(10, branch(3, 1, bound_pages=4), branch(3, 1, bound_pages=4))
    slots = RangeLayout(FirstFit, 100, LedgerOptions(together=False), shared=False)
    assert slots.admit(held("a", group)) is None and slots.free_pages == 100 - 2 * (10 + 6)
    shared = ranges(100)
    assert shared.admit(held("a", group)) is None and shared.free_pages == 100 - 10 - 2 * 6
    assert slots.unused_pages == shared.unused_pages == 2 * 3
    rounded = RangeLayout(Buddy, 128, LedgerOptions())
    assert rounded.admit(held("a", group)) is None and rounded.unused_pages == 2 * 3 + 10


def test_what_a_winner_leaves_is_one_range_or_two():
    layout = ranges(100)
    for name, what, transfers in (
        ("behind its sibling", hop(10, branch(3), branch(2)), 2),
        ("beside its context", hop(10, branch(2), branch(3)), 1),
        ("ended before the decision", hop(10, branch(3, 2), branch(2), first_wins=False), 1),
    ):
        one = held(name, what)
        before = layout.tally.transfers
        layout.admit(one)
        if not what.first_wins:
            layout.branch_ended(one, 1)
            layout.branch_ended(one, 0)
        layout.decided(one)
        assert layout.free_pages == 100
        assert layout.tally.transfers - before == transfers, name


# --- two page sizes ---


def test_a_window_is_each_branches_own_and_has_a_bound():
    assert parts_of(hop(100, branch(5), branch(9)), 8, PAGE) == [(100, 0), (5, 9), (9, 9)]
    assert parts_of(hop(2, branch(3)), 8, PAGE) == [(2, 0), (3, 5)]


def test_the_ways_to_house_two_sizes_on_one_memory():
    units = (2, 3)
    assert OneSize(30, units).fits((9, 4)) and not OneSize(30, units).fits((9, 5))
    assert not OneSize(30, (3, 3)).fits((9, 4)), "filled up"
    pools = TwoPools(30, units, (6, 6))
    assert pools.fits((6, 6)) and not pools.fits((7, 0)) and not pools.fits((0, 7))
    large = LargePages(31, units)  # five pages of six: three of the one kind or two of the other
    assert large.total == 30 and large.fits((9, 4)) and not large.fits((10, 4)), "20 + 12 are more than 30"
    large.take("a", (1, 1))
    assert large.free == 25 and large.fits((8, 3)) and not large.fits((9, 2)), "24, but a fourth page for one window"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(0, 99)), max_size=40))
def test_large_pages_are_conserved(steps: Sequence[tuple[int, int, int]]) -> None:
    housing, held_pages = LargePages(200, (5, 3)), dict[str, tuple[int, int]]()
    for number, (full, window, who) in enumerate(steps):
        if who % 3 and housing.fits((full, window)):
            housing.take(str(number), (full, window))
            held_pages[str(number)] = (full, window)
        elif held_pages:
            name = list(held_pages)[who % len(held_pages)]
            housing.give_back(name)
            del held_pages[name]
        used = sum(5 * a + 3 * b for a, b in held_pages.values())
        assert housing.free == housing.total - used
    for name in held_pages:
        housing.give_back(name)
    assert housing.free == housing.total and housing.fits((39, 0)) and housing.fits((0, 65))


# --- a run ---


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_plays_all_pipelines_and_is_empty_in_the_end(layout: str):
    hybrid = HYBRID if layout.startswith("mixed") else ""
    scenario = MemoryScenario(workload=SMALL, hybrid=hybrid)
    first, again = (play_memory(scenario, layout, 7, lambda *_: None) for _ in range(2))
    assert first == again
    assert first["completed"] + first["refused"] == 120 and first["completed"] >= 110
    assert layout.startswith(("slots", "ranges", "mixed")) or first["failed_contiguity"] == 0
    assert first["live_groups"] > 0 and 0 <= first["free_share"] <= 1


def test_what_contiguity_costs():
    """The order that docs/fragmentation.md tells of."""
    best_first = ("paged", "ranges, compacted", "ranges, first fit", "slots, first fit", "slots, buddy")
    found = [live_groups(layout) for layout in best_first]
    assert found == sorted(found, reverse=True) and found[0] > 1.5 * found[3]
    assert live_groups("ranges, 4 extents") > live_groups("ranges, first fit") > live_groups("ranges, buddy")
    assert live_groups("mixed: bytes", hybrid=HYBRID) > live_groups("mixed: two pools", hybrid=HYBRID)


class Recorder:
    """A layout of one hop at a time that says what it was told."""

    cancels = True

    def __init__(self, layout: Layout) -> None:
        self.inner = layout
        self.said: list[str] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def admit(self, what: Held) -> Refusal | None:
        refusal = self.inner.admit(what)
        self.said.append(f"{what.name} {refusal or 'in'}")
        return refusal

    def branch_ended(self, what: Held, index: int) -> None:
        self.said.append(f"{what.name} branch {index}")
        self.inner.branch_ended(what, index)

    def decided(self, what: Held) -> None:
        self.said.append(f"{what.name} decided")
        self.inner.decided(what)


def test_hops_start_in_order_and_one_that_never_fits_is_refused():
    small, large = hop(5, branch(2, 1)), hop(50, branch(2))
    first = hop(5, branch(4, 3, works=False), branch(5, 4), branch(9, 8))
    layout = Recorder(PagedLayout(25, PAGE))
    pipelines = [
        MemoryPipeline(arrival_s=at, hops=hops)
        for at, hops in ((0.0, (first, small)), (0.1, (large,)), (0.2, (small,)))
    ]
    worker = MemoryWorker(layout, pipelines, 1.0)  # type: ignore[arg-type]
    worker.run(lambda *_: None)
    assert (worker.completed, worker.refused) == (2, 1)
    said = [each for each in layout.said if each != "1.0 room"]  # it waits until nothing is live
    assert said[:4] == ["0.0 in", "0.0 branch 0", "0.0 decided", "2.0 in"]
    assert said[4:] == ["2.0 decided", "0.1 in", "0.1 decided"]

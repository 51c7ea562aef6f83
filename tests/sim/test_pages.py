"""Ranges, blocks, extents and slides on hand-made lines of pages, and the ledger's books on hand-made groups."""

import pytest

from amf.sim.pages.buddy import Buddy
from amf.sim.pages.compaction import Slide, cheapest_slide
from amf.sim.pages.extents import reserve_extents
from amf.sim.pages.ledger import LedgerOptions, Need, Released, ReservationLedger
from amf.sim.pages.ranges import BestFit, FirstFit, Range, joined

PAGE = 16


def with_holes(kind: type[FirstFit] | type[BestFit]) -> FirstFit | BestFit:
    """Free: 10 to 16, 20 to 23, 30 to 40."""
    line = kind(40)
    line.take(Range(0, 40))
    for hole in (Range(10, 6), Range(20, 3), Range(30, 10)):
        line.free(hole)
    return line


def group(ledger: ReservationLedger, shared_pages: int, **pages: int) -> bool:
    return ledger.reserve_group("g", shared_pages * PAGE, {name: Need(count * PAGE) for name, count in pages.items()})


def test_first_fit_takes_the_first_run_and_best_fit_the_shortest():
    assert with_holes(FirstFit).reserve(3) == Range(10, 3)
    assert with_holes(BestFit).reserve(3) == Range(20, 3)
    assert with_holes(BestFit).reserve(7) == Range(30, 7)
    assert with_holes(FirstFit).reserve(11) is None


def test_free_pages_may_be_enough_and_yet_no_run():
    line = with_holes(FirstFit)
    assert (line.free_pages, line.largest_run) == (19, 10)
    line.free(Range(16, 4))
    assert (line.free_pages, line.largest_run) == (23, 13)
    line.check_invariants()


def test_what_is_not_reserved_cannot_be_given_back_nor_what_is_not_free_taken():
    line = with_holes(FirstFit)
    for wrong in (Range(9, 2), Range(10, 1), Range(19, 12), Range(38, 5), Range(0, 0)):
        with pytest.raises(ValueError, match="is not reserved"):
            line.free(wrong)
    with pytest.raises(ValueError, match="is not free"):
        line.take(Range(15, 2))
    for refuses in (FirstFit, BestFit, Buddy):
        with pytest.raises(ValueError, match="at least one page"):
            refuses(0)
        with pytest.raises(ValueError, match="at least one page"):
            refuses(8).reserve(0)


def test_a_buddys_rounding_is_waste_until_it_comes_back():
    buddy = Buddy(32)
    nine = buddy.reserve(9)
    assert nine == Range(0, 9) and (buddy.free_pages, buddy.wasted_pages, buddy.largest_run) == (16, 7, 16)
    buddy.free(Range(2, 7))  # two pages stay, in a block of two
    assert (buddy.free_pages, buddy.wasted_pages) == (30, 0)
    buddy.check_invariants()
    with pytest.raises(ValueError, match="is not reserved"):
        buddy.free(Range(1, 2))
    buddy.check_invariants()
    buddy.free(Range(0, 2))
    assert (buddy.free_pages, buddy.largest_run) == (32, 32)


def test_a_buddys_space_need_not_be_a_power_of_two():
    buddy = Buddy(22)  # 16 + 4 + 2
    assert [buddy.reserve(4), buddy.reserve(2), buddy.reserve(9)] == [Range(16, 4), Range(20, 2), Range(0, 9)]
    assert buddy.reserve(1) is None and (buddy.free_pages, buddy.wasted_pages) == (0, 7)


def test_extents_are_as_few_as_can_be():
    assert reserve_extents(with_holes(BestFit), 10, 1) == (Range(30, 10),)
    assert reserve_extents(with_holes(BestFit), 12, 2) == (Range(30, 10), Range(20, 2))
    assert reserve_extents(with_holes(BestFit), 19, 3) == (Range(30, 10), Range(10, 6), Range(20, 3))
    line = with_holes(BestFit)
    assert reserve_extents(line, 19, 2) is None and line.free_pages == 19
    line.check_invariants()


def test_the_cheapest_slide_moves_the_least():
    runs = with_holes(FirstFit).runs()
    assert cheapest_slide(runs, 10) == Slide(Range(30, 10), 0)
    assert cheapest_slide(runs, 13) == Slide(Range(20, 20), 7)
    assert cheapest_slide(runs, 14) == Slide(Range(10, 30), 11)
    assert cheapest_slide(runs, 20) is None


def test_ranges_that_touch_are_one():
    assert joined([Range(4, 2), Range(0, 3), Range(6, 1), Range(9, 0)]) == (Range(0, 3), Range(4, 3))


def test_a_group_lies_in_one_range_with_its_context_once():
    ledger = ReservationLedger(FirstFit(100))
    assert group(ledger, 40, a=3, b=5, c=2)
    assert ledger.ranges_of("b") == (Range(0, 40), Range(43, 5)) and ledger.allocator.free_pages == 50
    ledger.check_invariants()


def test_tokens_are_rounded_to_pages_and_a_shared_rest_is_each_calls_own():
    ledger = ReservationLedger(FirstFit(100))
    assert ledger.pages_of(5 * PAGE + 10, [Need(6), Need(7), Need(0, 1), Need(100, 60)]) == (5, [1, 2, 1, 11])
    with pytest.raises(ValueError, match="at least 1 together"):
        Need(0)


def test_a_commit_keeps_the_winners_pages_and_the_siblings_come_back_as_one_range():
    ledger = ReservationLedger(FirstFit(100))
    group(ledger, 40, a=3, b=5, c=2)
    assert ledger.commit("g", ["a"]) == Released(("b", "c"), (Range(43, 7),))
    assert ledger.running == ("a",) and ledger.allocator.free_pages == 57
    assert ledger.commit("g", ["b"]) == Released(("a",), (Range(0, 43),))
    assert ledger.finish("a") == Released() == ledger.commit("g", ["a"])


def test_ended_calls_give_back_at_once_or_at_the_decision():
    at_once = ReservationLedger(FirstFit(100))
    group(at_once, 40, a=3, b=5, c=2)
    assert at_once.finish("b") == Released(("b",), (Range(43, 5),))
    later = ReservationLedger(FirstFit(100), LedgerOptions(deferred=True))
    group(later, 40, a=3, b=5, c=2)
    assert later.finish("b") == Released(("b",)) and later.fail("c") == Released(("c",))
    assert later.commit("g", ["a"]) == Released((), (Range(43, 7),))
    assert later.finish("a").ranges == (Range(0, 43),)


def test_a_deferred_group_that_nobody_can_decide_about_is_gone():
    ledger = ReservationLedger(FirstFit(100), LedgerOptions(deferred=True))
    group(ledger, 40, a=3, b=5)
    ledger.fail("a")
    assert ledger.fail("b") == Released(("b",), (Range(0, 48),))
    group(ledger, 40, a=3, b=5)
    ledger.finish("a")
    ledger.fail("b")
    assert ledger.allocator.free_pages == 52, "a's answer waits to be committed"
    assert ledger.discard("g", ["a"]).ranges == (Range(0, 48),)


def test_a_late_sibling_joins_what_is_shared_and_a_call_may_outgrow_its_reservation():
    ledger = ReservationLedger(FirstFit(20))
    group(ledger, 8, a=3)
    assert ledger.join("g", "b", Need(4 * PAGE)) and not ledger.join("none", "c", Need(1))
    assert ledger.grow("a", 3 * PAGE) and ledger.allocator.free_pages == 5
    assert ledger.grow("a", 5 * PAGE + 1) and ledger.ranges_of("a") == (Range(0, 11), Range(15, 3))
    assert not ledger.grow("a", 9 * PAGE) and not ledger.grow("nobody", 1)
    assert ledger.finish("a").ranges == (Range(8, 3), Range(15, 3))


def test_a_group_that_finds_no_range_waits_or_lies_in_a_few():
    for extents, found in ((1, False), (2, True)):
        ledger = ReservationLedger(BestFit(40), LedgerOptions(extents=extents))
        for name, pages in (("x", 10), ("y", 8), ("z", 8), ("end", 14)):
            ledger.reserve(name, Need(pages * PAGE))
        ledger.fail("x")
        ledger.fail("z")
        assert group(ledger, 12, a=3, b=3) is found
        assert ledger.ranges_of("b") == ((Range(0, 10), Range(21, 5)) if found else ())
        ledger.check_invariants()
    with pytest.raises(ValueError, match="set extents = 1"):
        ReservationLedger(Buddy(40), LedgerOptions(extents=2))


def test_compacting_moves_what_is_reserved_and_keeps_its_order():
    ledger = ReservationLedger(FirstFit(40))
    for name, pages in (("x", 10), ("y", 8), ("z", 8), ("end", 14)):
        ledger.reserve(name, Need(pages * PAGE))
    ledger.fail("x")
    ledger.fail("z")
    assert not group(ledger, 12, a=3, b=3)
    assert ledger.compact(18) == 8 and ledger.ranges_of("y") == (Range(0, 8),)
    assert group(ledger, 12, a=3, b=3) and ledger.compact(1) is None
    ledger.check_invariants()
    with pytest.raises(ValueError, match="cannot move"):
        ReservationLedger(Buddy(8)).compact(1)


def test_a_lost_worker_leaves_nothing():
    ledger = ReservationLedger(FirstFit(100), LedgerOptions(deferred=True))
    group(ledger, 40, a=3, b=5)
    ledger.reserve("x", Need(PAGE))
    ledger.finish("a")
    assert ledger.lose() == Released(("b", "x"), (Range(0, 49),))
    assert ledger.allocator.free_pages == 100 and ledger.running == ()


def test_a_name_is_used_once():
    ledger = ReservationLedger(FirstFit(100))
    group(ledger, 4, a=3)
    for wrong in ({"a": Need(1)}, {}):
        with pytest.raises(ValueError, match="reserved already, or it has no calls"):
            ledger.reserve_group("h", 0, wrong)

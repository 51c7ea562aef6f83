"""A pool whose workers have a DRAM tier: what is believed to be where, and when the fabric sends or holds."""

import pytest

from amf.core.config import FabricConfig
from amf.core.policy.residency import to_break_even
from amf.core.state.observed import Observed
from amf.core.state.warmth import Hit, Warmth
from amf.core.types import Tier
from kit import Room, dispatch_in, kinds, prefix, worker


def room_with(dram_tokens: int, workers: int = 2, **config: object) -> Room:
    """Workers w0, w1, … of 500,000 tokens of HBM."""
    room = Room(workers=(), **config)
    for index in range(workers):
        room.join(f"w{index}", dram_tokens=dram_tokens)
    return room


def session(room: Room, run: str, tokens: int, call: int = 0) -> str:
    """A call of the run is served, and the run is idle then."""
    return room.serve(f"{run}.{call}", run, prefix((run, tokens)))


def open_call(room: Room, run: str, tokens: int) -> str:
    """A call of the run is sent and runs on; its first token has come."""
    placed = dispatch_in(room.arrive(f"{run}.open", run, prefix((run, tokens))))
    room.first_token(f"{run}.open")
    return placed.worker


def short_room() -> Room:
    """One worker of 500,000 + 500,000 tokens with 630,000 of idle contexts, just done, and a call of 200,000 that runs."""
    room = room_with(500_000, workers=1)
    for index in range(6):
        session(room, f"s{index}", 104_992)
    open_call(room, "busy", 200_000)
    return room


def test_what_hbm_has_forgotten_is_believed_to_be_in_dram():
    warmth = Warmth(FabricConfig())
    warmth.add_worker(worker("w", kv_tokens=1_600, dram_tokens=1_600))
    chains = [prefix((name, 1_024), tail=1) for name in "abcd"]
    for step, chain in enumerate(chains):
        warmth.dispatched("w", chain, float(step))
        warmth.ended("w", chain, float(step), completed=True)
    seen = [warmth.hit("w", chain, 5.0) for chain in chains]
    assert seen == [warmth.hits(chain, 5.0).get("w", Hit(0, 0)) for chain in chains]
    assert seen[3] == Hit(1_024, 1_024)
    assert [hit.tokens for hit in seen[1:3]] == [1_024, 1_024]
    assert [hit.hbm_tokens < 600 for hit in seen[1:3]] == [True, True]
    assert seen[0].tokens < 600 and seen[0].hbm_tokens == 0
    warmth.check_invariants()
    warmth.drop_worker("w")
    assert warmth.hits(chains[3], 5.0) == {}


def test_a_miss_in_the_tier_is_a_miss_of_all_that_is_older():
    warmth = Warmth(FabricConfig())
    warmth.add_worker(worker("w", kv_tokens=1_600, dram_tokens=16_000))
    chain = prefix(("a", 8_192), tail=1)
    for step in (0.0, 1.0):
        used_s = warmth.dispatched("w", chain, step)
        warmth.ended("w", chain, step, completed=True)
    assert warmth.hit("w", chain, 2.0).tokens == 8_192
    warmth.correct("w", 8_192, 0, used_s + 1.0)
    assert warmth.hit("w", chain, 2.0) == Hit(0, 0)


def test_events_say_which_tier_a_block_is_in():
    observed, chain = Observed(), prefix(("a", 160))
    observed.add_worker("w")
    observed.stored("w", chain.keys, Tier.HBM)
    observed.evicted("w", chain.keys[4:], Tier.HBM)
    observed.stored("w", chain.keys[4:], Tier.DRAM)
    assert observed.hit("w", chain) == (160, 64)
    observed.evicted("w", chain.keys[8:], Tier.DRAM)
    assert observed.hit("w", chain) == (128, 64)


def test_break_even_counts_both_tiers():
    room = room_with(1_500_000)
    plain = Room(workers=("w",))
    with_tier, without = room.fabric.book.workers["w0"], plain.fabric.book.workers["w"]
    config = FabricConfig()
    assert to_break_even(with_tier, 100_000, config) == pytest.approx(4 * to_break_even(without, 100_000, config))


def test_while_all_contexts_fit_nothing_but_its_worker_s_hbm_holds_a_call():
    room = room_with(2_000_000)
    homes = {run: session(room, run, 100_000) for run in "abcd"}
    assert sorted(homes.values()) == ["w0", "w0", "w1", "w1"], "new runs go where the tiers are emptiest"
    for index in range(4):  # cold, two at a time beside each other, all HBM but 100,000 tokens
        assert kinds(room.arrive(f"new{index}", f"new{index}", prefix((f"new{index}", 200_000))))[1:] == ["Dispatch"]
    held = room.arrive("a.1", "a", prefix(("a", 100_000), ("more", 20_000)))
    assert kinds(held) == ["Hold"] and "memory" in held[0].because.reason
    back = dispatch_in(room.arrive("b.1", "b", prefix(("other", 40_000))))
    assert back.worker == homes["b"], "a smaller one passes, to its own worker even with a new context"


def test_what_waits_counts_as_live():
    room = room_with(500_000, workers=1)
    assert kinds(room.arrive("a", "a", prefix(("a", 450_000))))[1:] == ["Dispatch"]
    assert kinds(room.arrive("b", "b", prefix(("b", 400_000))))[1:] == ["Hold"], (
        "850,000 are more than 0.8 of 1,000,000"
    )
    assert room.fabric.book.pools["m"].waiting_tokens == 400_000
    room.first_token("a")
    placed = room.finish("a", prompt=450_000)
    assert kinds(placed) == [], "a's context is idle and protected"
    assert kinds(room.close("a")) == ["Dispatch"]
    assert room.fabric.book.pools["m"].waiting_tokens == 0


def test_a_cold_call_is_held_back_from_the_last_tier_and_a_warm_one_needs_hbm_alone():
    room = short_room()
    held = room.arrive("cold", "new", prefix(("new", 100_000)))
    assert kinds(held) == ["Admit", "Hold"] and "protected" in held[1].because.reason
    warm = dispatch_in(room.arrive("s0.1", "s0", prefix(("s0", 104_992), ("more", 800))))
    assert warm.hit_tokens == 104_992 and warm.worker == "w0"
    room.first_token("s0.1")
    assert kinds(room.arrive("s1.1", "s1", prefix(("s1", 104_992), ("more", 800)))) == ["Dispatch"]
    last = room.arrive("s2.1", "s2", prefix(("s2", 104_992), ("more", 800)))
    assert kinds(last) == ["Hold"] and "memory" in last[0].because.reason


def test_a_cold_call_waits_for_a_warm_one_that_waits():
    room = room_with(500_000, workers=1, hold_fraction=0.0, tier_margin=0.5)
    session(room, "s5", 104_992)
    open_call(room, "busy", 200_000)
    open_call(room, "large", 250_000)
    waits = room.arrive("s5.1", "s5", prefix(("s5", 104_992), ("more", 800)))
    assert "memory" in waits[0].because.reason
    held = room.arrive("cold", "new", prefix(("new", 40_000)))
    assert "warm calls go first" in held[1].because.reason
    room.finish("busy.open", prompt=200_000)
    assert {"s5.1", "cold"} <= room.fabric.book.workers["w0"].flights.keys(), "there is memory for both now"


def test_a_call_that_has_waited_too_long_gets_its_worker_for_itself():
    room = room_with(500_000, workers=1, tier_margin=0.5)
    open_call(room, "busy", 200_000)
    open_call(room, "busy2", 250_000)
    room.arrive("large", "new", prefix(("new", 400_000)))
    small = prefix(("small", 10_000))
    assert kinds(room.arrive("small1", "small1", small))[1:] == ["Dispatch"], "a warm call passes"
    assert kinds(room.wake(room.now_s + 1_801.0)) == [], "what runs has the memory"
    held = room.arrive("small2", "small2", small)
    assert kinds(held)[1:] == ["Hold"] and "too long" in held[1].because.reason
    room.finish("small1", prompt=10_000)
    room.finish("busy.open", prompt=200_000)
    assert "large" not in room.fabric.book.workers["w0"].flights
    room.finish("busy2.open", prompt=250_000)
    assert {"large", "small2"} <= room.fabric.book.workers["w0"].flights.keys()


def test_what_is_loaded_back_is_expected_and_not_taken_for_slow_prefill():
    room = room_with(2_000_000, workers=1)
    session(room, "a", 100_000)
    session(room, "b", 450_000)  # a goes to DRAM
    worker = room.fabric.book.workers["w0"]
    pace = worker.prefill_scale
    placed = dispatch_in(room.arrive("a.1", "a", prefix(("a", 100_000), ("more", 800))))
    flight = worker.flights["a.1"]
    assert placed.hit_tokens == 100_000 and 0.1 < flight.restore_s < 0.33, "most of 100,000 x 160 KiB at 50 GB/s"
    assert flight.due_s == room.now_s + flight.restore_s + flight.prefill_s
    room.now_s = flight.due_s
    room.first_token("a.1")
    assert worker.prefill_scale == pace


def test_a_run_whose_worker_is_gone_moves():
    room = room_with(2_000_000)
    home = session(room, "a", 100_000)
    room.lose(home)
    assert dispatch_in(room.arrive("a.1", "a", prefix(("a", 110_000)))).worker != home

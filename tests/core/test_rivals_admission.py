"""Rivals that decide who may start or go on: llm-d's flow control, Preble, footprints, ThunderAgent's decay, cancelled runs."""

import pytest

from amf.core.config import FabricConfig
from amf.core.events import WorkerReported
from amf.core.policy.bundles import BUNDLES, live_policies_named
from amf.core.policy.residency import by_break_even, to_break_even
from kit import Room, dispatch_in, kinds, prefix

BLOCK = 1_000


def prompt(name: str, tokens: int):
    return prefix((name, tokens), block=BLOCK)


def placed(decisions) -> list[str]:
    return [each.call_id for each in decisions if type(each).__name__ == "Dispatch"]


def reports(room: Room, name: str, waiting: int, kv_used_ratio: float):
    return room.send(
        WorkerReported(at_s=room.now_s, name=name, running=1, waiting=waiting, kv_used_ratio=kv_used_ratio)
    )


# --- llm-d ----------------------------------------------------------------------------------------------------------------


def test_llm_d_reads_what_workers_report_and_counts_itself_where_none_did():
    room = Room("llm-d", ("a", "b"))
    reports(room, "a", waiting=4, kv_used_ratio=0.5)
    first = dispatch_in(room.arrive("c1", prompt=prompt("x", 10_000)))
    # a: 0 of the queue score, 2 x 0.5;  b, uncounted and unreported: 2 + 2
    assert first.worker == "b" and [price.note for price in first.because.alternatives] == ["score 4.00", "score 1.00"]
    reports(room, "b", waiting=9, kv_used_ratio=0.9)
    second = dispatch_in(room.arrive("c2", prompt=prompt("y", 10_000)))
    # a: 2 x 1 + 2 x 0.5;  b: 0 + 2 x 0.1: its own count of one call in flight is not asked any more
    assert second.worker == "a" and [price.note for price in second.because.alternatives] == [
        "score 3.00",
        "score 0.20",
    ]


def test_flow_control_holds_calls_while_the_mean_of_the_workers_is_saturated():
    room = Room("llm-d-las", ("a", "b"))
    reports(room, "a", waiting=5, kv_used_ratio=0.4)  # max(5/5, 0.4/0.8) = 1
    reports(room, "b", waiting=2, kv_used_ratio=0.8)  # max(2/5, 0.8/0.8) = 1
    held = room.arrive("c1")
    assert kinds(held) == ["Admit", "Hold"] and "saturation is 1.00" in held[1].because.reason
    assert placed(reports(room, "b", waiting=5, kv_used_ratio=0.79)) == [], "queue and memory: the larger counts"
    assert placed(reports(room, "b", waiting=4, kv_used_ratio=0.79)) == ["c1"], "a report lets calls go at once"


def test_without_flow_control_llm_d_binds_at_once_whatever_is_reported():
    room = Room("llm-d", ("a",))
    reports(room, "a", waiting=50, kv_used_ratio=1.0)
    assert kinds(room.arrive("c1")) == ["Admit", "Dispatch"]


def attained(room: Room, **tokens: int) -> None:
    """One finished call a program, of that many prompt tokens; then the pool is saturated."""
    for run, size in tokens.items():
        room.arrive(f"{run}1", run, prompt(run, size))
        room.first_token(f"{run}1")
        room.finish(f"{run}1", prompt=size, output=100)
    reports(room, "w", waiting=9, kv_used_ratio=0.1)


def test_least_attained_service_goes_first_and_attained_tokens_are_halved_every_minute():
    room = Room("llm-d-las", ("w",))
    attained(room, much=50_000, little=2_000)
    pipelines = room.fabric.book.pipelines
    assert pipelines.get("much").attained_tokens("m", room.now_s) == 50_200
    assert pipelines.get("much").attained_tokens("m", room.now_s + 120.0) == pytest.approx(12_550)
    assert pipelines.get("much").attained_tokens("other", room.now_s) == 0.0
    for run in ("much", "little", "none"):
        room.arrive(f"{run}2", run)
    assert placed(reports(room, "w", waiting=0, kv_used_ratio=0.1)) == ["none2", "little2", "much2"]


def test_a_long_wait_is_worth_a_fifth_of_the_score():
    room = Room("llm-d-las", ("w",))
    attained(room, old=10_000, young=9_000)
    room.arrive("old2", "old")
    room.now_s += 30.0
    room.arrive("young2", "young")  # 0.8 x (1 - 0.9) + 0 against 0 + 0.2 x 1
    assert placed(reports(room, "w", waiting=0, kv_used_ratio=0.1)) == ["old2", "young2"]


# --- Preble ---------------------------------------------------------------------------------------------------------------


def test_preble_exploits_a_cached_half_and_explores_below_it():
    room = Room("preble", ("a", "b"))
    assert room.serve("c1", "r", prompt("x", 20_000)) == "a"
    room.serve("c2", "s", prompt("y", 17_000))  # b: a had the load of c1
    half = dispatch_in(room.arrive("c3", "r", prefix(("x", 20_000), ("z", 20_000), block=BLOCK)))
    assert half.worker == "a" and "exploit: 20000 of 40000" in half.because.reason
    room.first_token("c3")
    room.finish("c3", prompt=40_000)
    less = dispatch_in(room.arrive("c4", "r", prefix(("x", 20_000), ("q", 21_000), block=BLOCK)))
    assert less.worker == "b" and "explore" in less.because.reason


def test_preble_leaves_the_most_loaded_holder_for_the_least_loaded():
    room = Room("preble", ("a", "b"), preble_balance_ratio=3.0)
    assert room.serve("c1", "r", prompt("x", 40_000)) == "a"
    assert room.serve("c2", "s", prompt("y", 30_000)) == "b"
    again = prefix(("x", 40_000), ("z", 1_000), block=BLOCK)
    assert dispatch_in(room.arrive("c3", "r", again)).worker == "a"
    room.finish("c3", prompt=41_000)
    uneven = Room("preble", ("a", "b"))
    assert uneven.serve("c1", "r", prompt("x", 40_000)) == "a"
    moved = dispatch_in(uneven.arrive("c3", "r", again))
    assert moved.worker == "b" and "rebalance" in moved.because.reason


def test_preble_counts_the_prefill_of_the_last_minutes_and_forgets_it():
    room = Room("preble", ("a", "b"))
    room.serve("c1", "r", prompt("x", 40_000))
    worker = room.fabric.book.workers["a"]
    sent_s = worker.recent_prefill_s(0.0)
    assert sent_s == pytest.approx(worker.prefill_s(40_000, 0), rel=0.2)
    assert worker.recent_prefill_s(180.0) == pytest.approx(sent_s / 2.718281828)


def test_preble_counts_what_a_full_worker_must_forget():
    room = Room("preble", ("a", "b"))
    assert room.serve("c1", "r", prompt("x", 450_000)) == "a"
    assert room.serve("c2", "s", prompt("y", 100_000)) == "b"
    room.now_s += 3_000.0  # the load is forgotten, what is cached is not
    assert dispatch_in(room.arrive("c3", "t", prompt("z", 200_000))).worker == "b"


# --- footprint ------------------------------------------------------------------------------------------------------------


def test_a_new_session_starts_only_when_its_footprint_fits_beside_those_that_live():
    room = Room("footprint", ("w",), footprint_tokens=110_000)
    for number in range(4):
        assert kinds(room.arrive(f"{number}", f"r{number}", prompt(f"r{number}", 20_000))) == ["Admit", "Dispatch"]
    held = room.arrive("4", "r4", prompt("r4", 20_000))  # five times 110 K is above 500 K, five times 20 K is not
    assert kinds(held) == ["Admit", "Hold"] and "440000 of 500000" in held[1].because.reason
    assert kinds(room.arrive("0.2", "r0", prompt("r0", 21_000))) == ["Dispatch"], "a later call goes at once"
    assert placed(room.close("r1")) == ["4"]


def test_a_context_above_the_footprint_counts_as_it_is():
    room = Room("footprint", ("w",), footprint_tokens=110_000)
    room.arrive("big", prompt=prompt("big", 400_000))
    assert kinds(room.arrive("small", prompt=prompt("small", 1_000))) == ["Admit", "Hold"]


def test_the_footprint_is_learned_unless_it_is_given():
    room = Room("footprint", ("w",))
    room.serve("c1", "r", prompt("r", 240_000))
    assert room.fabric.book.profiles.pool_context_tokens("m") == 240_100
    assert kinds(room.arrive("c2", "s", prompt("s", 1_000))) == ["Admit", "Dispatch"]  # 240,100 + 240,100
    assert kinds(room.arrive("c3", "t", prompt("t", 1_000))) == ["Admit", "Hold"]


def test_a_session_that_is_given_up_counts_no_more_and_an_empty_pool_takes_any():
    room = Room("footprint", ("w",), footprint_tokens=400_000)
    room.serve("c1", "r", prompt("r", 1_000))
    assert kinds(room.arrive("c2", "s", prompt("s", 1_000))) == ["Admit", "Hold"]
    assert placed(room.wake(room.now_s + 79.0)) == []
    assert placed(room.wake(room.now_s + 2.0)) == ["c2"], "eight mean gaps of 10 s"
    huge = Room("footprint", ("w",), footprint_tokens=900_000)
    assert kinds(huge.arrive("c1")) == ["Admit", "Dispatch"]


def test_a_session_stays_where_it_began():
    room = Room("footprint", ("a", "b"))
    assert room.serve("c1", "r", prompt("r", 10_000)) == "a"
    assert room.serve("c2", "s", prompt("s", 10_000)) == "b"
    assert dispatch_in(room.arrive("c3", "s", prompt("s", 11_000))).worker == "b"


# --- ThunderAgent with decay ----------------------------------------------------------------------------------------------


def test_what_acts_counts_for_half_after_every_half_life():
    for policy, waits_s in (("thunderagent-fcfs", 1_800.0), ("thunderagent-decay", 100.0)):
        room = Room(policy, ("w",))
        room.serve("c1", "r", prompt("r", 400_000))
        acted_s = room.now_s
        assert kinds(room.arrive("c2", "s", prompt("s", 299_000)))[1] == "Hold"  # 200 K + 299 K + buffers is just below
        assert placed(room.wake(acted_s + waits_s - 1.0)) == [], policy
        assert placed(room.wake(acted_s + waits_s + 1.0)) == ["c2"], policy


def test_a_half_life_of_zero_is_the_rule_as_published():
    room = Room("thunderagent-decay", ("w",), thunderagent_decay_s=0.0)
    room.serve("c1", "r", prompt("r", 400_000))
    room.arrive("c2", "s", prompt("s", 299_000))
    assert placed(room.wake(room.now_s + 1_000.0)) == []


# --- runs that are given up at their deadline -----------------------------------------------------------------------------


def test_a_late_run_ends_with_all_its_calls_and_frees_its_worker():
    room = Room("edf-cancel", ("w",), start_soon_s=1.0)
    room.arrive("running", "r", prompt("a", 100_000), deadline_s=20.0)
    room.arrive("queued", "r", prompt("b", 100_000))
    room.arrive("other", "s", prompt("c", 1_000), deadline_s=90.0)
    assert kinds(room.wake(19.9)) == []
    late = room.wake(20.0)
    assert kinds(late) == ["Cancel", "Refuse", "Refuse", "Dispatch"]
    refusals = [each for each in late if type(each).__name__ == "Refuse"]
    assert [(each.call_id, each.code) for each in refusals] == [
        ("running", "deadline_exceeded"),
        ("queued", "deadline_exceeded"),
    ]
    assert placed(late) == ["other"]
    assert room.fabric.run_report("r")["status"] == "expired"
    assert room.finish("running") == [] and room.fabric.totals()["cancelled"] == 2
    (after,) = [each for each in room.arrive("after", "r") if type(each).__name__ == "Refuse"]
    assert after.code == "deadline_exceeded"


def test_the_fabric_asks_to_be_woken_at_the_next_deadline_even_if_nothing_waits():
    room = Room("edf-cancel", ("w",))
    wakes = [each.at_s for each in room.arrive("c1", "r", deadline_s=30.0) if type(each).__name__ == "WakeAt"]
    assert wakes == [30.0]
    room.close("r")
    assert room.fabric.book.expiries.next_s() == float("inf")
    assert not [each for each in Room("edf", ("w",)).arrive("c1", deadline_s=30.0) if type(each).__name__ == "WakeAt"]


def test_what_finishes_at_the_deadline_itself_is_in_time():
    room = Room("edf-cancel", ("w",))
    room.arrive("c1", "r", deadline_s=5.0, final=True)
    room.now_s = 5.0
    room.finish("c1")
    assert room.fabric.run_report("r")["status"] == "final"


def test_a_run_between_two_calls_is_given_up_too():
    room = Room("edf-cancel", ("w",))
    room.serve("c1", "r", deadline_s=50.0)
    assert kinds(room.wake(51.0)) == []
    assert room.fabric.run_report("r")["status"] == "expired"


def test_other_bundles_let_late_runs_go_on():
    for policy in BUNDLES:
        if policy in ("edf-cancel", "fabric-hard"):
            continue
        room = Room(policy, ("w",))
        room.arrive("c1", "r", deadline_s=5.0)
        assert not [each for each in room.wake(6.0) if type(each).__name__ in ("Cancel", "Refuse")], policy


# --- the clairvoyant fabric -----------------------------------------------------------------------------------------------


def test_who_must_know_the_future_is_refused_for_live_traffic():
    with pytest.raises(ValueError, match="'fabric-clairvoyant' needs a plan of the future: only `amf simulate`"):
        live_policies_named("fabric-clairvoyant")
    assert {name for name, policies in BUNDLES.items() if policies.clairvoyant} == {"fabric-clairvoyant"}
    for name, policies in BUNDLES.items():
        if not policies.clairvoyant:
            assert live_policies_named(name) is policies


def test_with_certainty_a_context_is_worth_its_whole_break_even_time():
    room = Room("fabric", ("w",))
    worker = room.fabric.book.workers["w"]
    whole_s = to_break_even(worker, 60_000, FabricConfig())
    assert by_break_even(worker, 60_000, FabricConfig()) == pytest.approx(whole_s / 2)

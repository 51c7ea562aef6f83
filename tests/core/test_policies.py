"""Each rule on a hand-made case, so that a change of behaviour is a change of a test."""

from dataclasses import replace

import pytest

from amf.core.config import FabricConfig
from amf.core.cost import break_even_s
from amf.core.events import GraphDeclared, WorkerJoined
from amf.core.graph import graph_from_dict
from amf.core.policy.bundles import BUNDLES, policies_named
from amf.core.policy.residency import by_break_even
from amf.core.state.pace import Pace, Paces
from amf.core.state.workers import WorkerState
from kit import PROFILE, Room, dispatch_in, kinds, prefix, worker


def places(room: Room, calls: int, tokens: int = 500) -> list[str]:
    return [dispatch_in(room.arrive(f"p{n}", prompt=prefix((f"p{n}", tokens)))).worker for n in range(calls)]


def test_round_robin_takes_turns():
    assert places(Room("round-robin", ("a", "b", "c")), 7) == ["a", "b", "c", "a", "b", "c", "a"]


def test_least_loaded_fills_the_emptiest():
    room = Room("least-loaded", ("a", "b", "c"))
    assert places(room, 4) == ["a", "b", "c", "a"]
    room.finish("p1")
    assert dispatch_in(room.arrive("next")).worker == "b"


def test_session_affinity_keeps_a_session_and_spreads_sessions():
    room = Room("session-affinity", ("a", "b", "c", "d"))
    homes = {}
    for turn in range(3):
        for session in range(16):
            call = f"{session}.{turn}"
            placed = dispatch_in(room.arrive(call, run=f"s{session}"))
            homes.setdefault(session, set()).add(placed.worker)
            room.finish(call)
    assert all(len(workers) == 1 for workers in homes.values())
    assert len({next(iter(workers)) for workers in homes.values()}) == 4


def test_session_affinity_is_bounded_by_load():
    room = Room("session-affinity", ("a", "b", "c", "d"))
    loads = dict.fromkeys("abcd", 0)
    for number in range(40):  # one session sends all: it may not sink one worker
        loads[dispatch_in(room.arrive(f"c{number}", run="one")).worker] += 1
    assert max(loads.values()) <= 13  # ceil(1.25 x 40 / 4)


def test_session_affinity_moves_few_sessions_when_a_worker_joins():
    def homes(room: Room) -> dict[str, str]:
        found = {}
        for session in range(60):
            found[f"s{session}"] = dispatch_in(room.arrive(f"c{session}", run=f"s{session}")).worker
            room.finish(f"c{session}")
        return found

    before, after = homes(Room("session-affinity", "abcd")), homes(Room("session-affinity", "abcde"))
    moved = [session for session in before if before[session] != after[session]]
    assert all(after[session] == "e" for session in moved) and len(moved) < 25


def test_prefix_affinity_follows_a_long_match_and_else_the_emptiest_cache():
    room = Room("prefix-affinity", ("a", "b"))
    first = room.serve("c1", "r", prefix(("x", 4_000)))
    assert dispatch_in(room.arrive("c2", "r", prefix(("x", 4_000), ("y", 4_000)))).worker == first
    other = dispatch_in(room.arrive("c3", "s", prefix(("z", 2_000))))
    assert other.worker != first, "no match: the worker that holds least"


def test_prefix_affinity_balances_when_load_is_very_uneven():
    room = Room("prefix-affinity", ("a", "b"), prefix_balance_calls=4)
    chosen = [dispatch_in(room.arrive(f"c{n}", "r", prefix(("x", 4_000)))).worker for n in range(8)]
    assert chosen[:5] == ["a"] * 5 and "b" in chosen[5:]


def test_kv_cost_counts_blocks_to_prefill_and_blocks_in_use():
    room = Room("kv-cost", ("a", "b"))
    room.serve("c1", "r", prefix(("x", 8_000)))
    warm = dispatch_in(room.arrive("c2", "r", prefix(("x", 8_000), ("y", 160))))
    assert warm.worker == "a" and warm.because.alternatives[0].note.startswith("cost ")
    cold = dispatch_in(room.arrive("c3", "s", prefix(("z", 1_600))))
    assert cold.worker == "b", "a has 8 K tokens in use"


def test_essay_prefers_a_warm_worker_until_its_queue_reaches_the_threshold():
    room = Room("essay", ("a", "b"), kv_reuse_threshold_calls=3)
    shared = prefix(("x", 1_600))
    room.serve("c0", "r", shared)
    chosen = [
        dispatch_in(room.arrive(f"c{n}", f"r{n}", prefix(("x", 1_600), (f"t{n}", 16)))).worker for n in range(1, 6)
    ]
    assert chosen[:3] == ["a", "a", "a"] and chosen[3] == "b"


def test_the_fabric_prefers_a_warm_worker_while_warmth_is_worth_the_wait():
    room = Room("fabric", ("a", "b"))
    home = room.serve("c1", "r", prefix(("x", 20_000)))
    for number in range(3):  # three more pipelines keep the warm worker busy with decodes
        assert dispatch_in(room.arrive(f"w{number}", "r", prefix(("x", 20_000), (f"w{number}", 160)))).worker == home


def test_the_fabric_leaves_a_warm_worker_when_its_queue_costs_more_than_warmth_saves():
    room = Room("fabric", ("a", "b"))
    home = room.serve("c1", "r", prefix(("x", 1_600)))
    room.arrive("big", "s", prefix(("x", 1_600), ("big", 28_000)))
    placed = dispatch_in(room.arrive("c2", "r", prefix(("x", 1_600), ("y", 160))))
    assert placed.worker != home, "seconds of prefill stand before a saving of a third of a second"


def test_an_empty_worker_takes_a_call_no_worker_has_room_for_beside_others():
    room = Room("fabric", ("a",))
    assert "Dispatch" in kinds(room.arrive("huge", prompt=prefix(("x", 499_968), block=64)))


def test_a_prompt_beyond_any_memory_goes_to_an_engine_that_will_say_so():
    room = Room("fabric", ("a",))
    room.arrive("running", prompt=prefix(("y", 100_000)))
    assert "Dispatch" in kinds(room.arrive("never", prompt=prefix(("x", 640_000), block=64)))


def test_an_encoder_without_kv_memory_is_never_held_for_memory():
    room = Room("fabric", ())
    room.send(WorkerJoined(at_s=0.0, worker=worker("e", kv_tokens=0)))
    for number in range(4):
        placed = room.arrive(f"c{number}", prompt=prefix((f"c{number}", 512)), max_output_tokens=0)
        assert "Dispatch" in kinds(placed)


def chain(room: Room) -> None:
    hops = {
        "plan": {"model": "m"},
        "code": {"model": "m", "after": ["plan"]},
        "test": {"model": "m", "after": ["code"]},
    }
    room.send(GraphDeclared(at_s=0.0, graph=graph_from_dict({"name": "chain", "hops": hops})))
    for number, (hop, seconds) in enumerate((("plan", 4.0), ("code", 10.0), ("test", 6.0))):
        room.arrive(f"learn{number}", "teacher", graph="chain", hop=hop)
        room.now_s += seconds
        room.finish(f"learn{number}")


def test_budgets_leave_the_remaining_path_its_time_and_are_replanned():
    room = Room("fabric")
    chain(room)
    start_s = room.now_s
    first = dispatch_in(room.arrive("a", "r", graph="chain", hop="plan", deadline_s=start_s + 30.0))
    assert first.budget_s == pytest.approx(30.0 - 16.0)
    room.now_s += 9.0  # five seconds late
    room.finish("a")
    second = dispatch_in(room.arrive("b", "r", graph="chain", hop="code"))
    assert second.budget_s == pytest.approx(30.0 - 9.0 - 6.0), "later hops inherit the deadline and see the slack lost"
    assert second.slack_s == pytest.approx(15.0 - 10.0)


def test_the_essay_splits_the_deadline_once_by_share():
    room = Room("essay")
    chain(room)
    placed = dispatch_in(room.arrive("a", "r", graph="chain", hop="code", deadline_s=room.now_s + 40.0))
    assert placed.budget_s == pytest.approx(40.0 * 14.0 / 20.0)


def test_a_hop_outside_the_declared_graph_is_due_by_the_pipeline_deadline():
    room = Room("fabric")
    chain(room)
    placed = dispatch_in(room.arrive("a", "r", graph="chain", hop="surprise", deadline_s=room.now_s + 40.0))
    assert placed.budget_s == pytest.approx(40.0)


def test_protection_is_half_the_break_even_time():
    state = WorkerState(worker("w"), Paces())
    expected_s = 0.5 * break_even_s(PROFILE, 100_000, 500_000)
    assert by_break_even(state, 100_000, FabricConfig()) == pytest.approx(expected_s)
    assert 55.0 < expected_s < 80.0, "about 70 s for 100 K tokens in 500 K on one H200"
    assert by_break_even(state, 0, FabricConfig()) == 0.0


def test_unknown_policies_are_refused_with_the_known_names():
    with pytest.raises(ValueError, match=r"round-robin.*fabric"):
        policies_named("fabrik")
    assert all(name == policies.name for name, policies in BUNDLES.items())


def test_a_pace_follows_change_and_ignores_noise():
    pool, own = Pace(), Pace()
    for _ in range(30):
        pool.observe(2.0, 1.0)
        own.observe(2.1, 1.0)
    assert own.within(pool) == pool.factor == pytest.approx(2.0, rel=0.01)
    for _ in range(100):
        own.observe(6.0, 1.0)
    assert own.within(pool) == pytest.approx(6.0, rel=0.2)
    assert replace(own, observed_s=0.0, expected_s=0.0).within(pool) == pool.factor


def test_pipelines_of_one_call_are_neither_waited_for_nor_kept_apart():
    odds = {}
    for runs in (60, 3):  # sixty runs of one call, or three of twenty
        room = Room("fabric", ("a", "b"))
        for number in range(60):
            room.serve(f"c{number}", f"r{number % runs}", prefix((f"r{number % runs}", 2_000 + 160 * number)))
            room.now_s += 5.0
        odds[runs] = room.fabric.book.profiles.return_odds("m")
    assert odds[3] > 0.9 and odds[60] < 0.3, "a pipeline that does not come back for long is given up"

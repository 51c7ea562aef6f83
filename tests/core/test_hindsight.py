"""The rest of a pipeline as it turned out, and the factor that what was said of it is corrected by."""

import json
from math import exp

import pytest
from test_budgets import chain, hard_and_easy

from amf.core.events import GraphDeclared
from amf.core.state.hindsight import Factor, Stage, rests_s
from amf.core.state.profiles import Profiles
from kit import Room, dispatch_in


def stage(
    hop: str, parents: str, arrived_s: float, dispatched_s: float, ended_s: float, said_s: float | None = None
) -> Stage:
    return Stage(hop, tuple(parents), arrived_s, dispatched_s, ended_s, said_s)


def test_waits_in_our_queues_are_no_part_of_the_rest_and_gaps_are():
    # a takes 2 s after 1 s with us, then 3 s of a tool, then b waits for 4 s and takes 5 s
    assert rests_s([stage("a", "", 0, 1, 3), stage("b", "a", 6, 10, 15)]) == [2 + 3 + 5, 5]


def test_a_sibling_off_the_critical_path_has_its_own_way_to_the_end():
    done = [stage("a", "", 0, 0, 1), stage("b", "a", 1, 1, 3), stage("c", "a", 1, 1, 9), stage("d", "bc", 11, 11, 12)]
    assert rests_s(done) == [8 + 1 + 2 + 1, 2 + 2 + 1, 8 + 2 + 1, 1], "the join began 2 s after the last of them ended"


def test_in_a_loop_what_follows_hangs_on_the_round_before():
    rounds = [stage("a", "b", 0, 0, 1), stage("b", "a", 1, 1, 3), stage("a", "b", 3, 3, 4), stage("b", "a", 4, 4, 6)]
    assert rests_s(rounds) == [6, 5, 3, 2]


def test_a_call_whose_parents_were_never_seen_hangs_on_nothing():
    assert rests_s([stage("a", "", 0, 0, 1), stage("b", "z", 5, 6, 8)]) == [1, 2]


def test_what_was_too_little_is_said_larger_the_next_time_and_nothing_is_learned_where_nothing_was_said():
    factor = Factor()
    factor.observe([stage("a", "", 0, 0, 10)], 0.9)
    assert factor.value == 1.0
    factor.observe([stage("a", "", 0, 0, 10, 9.9)], 0.9)
    assert factor.value == pytest.approx(exp(0.9 * 0.005))
    factor.observe([stage("a", "", 0, 0, 10, 10.0)], 0.9)
    assert factor.value == pytest.approx(exp(0.8 * 0.005))


def test_budgets_leave_room_by_what_became_of_earlier_ones():
    room = Room(workers=("w1",), min_evidence=3, pipeline_idle_s=1e9)
    room.send(GraphDeclared(at_s=0.0, graph=chain("a", "b")))
    hard_and_easy(room, 60)
    paths, graph = room.fabric.book.profiles.paths, room.fabric.book.graphs["g"]
    before = paths.factor("g")
    for number in range(100, 120):  # slower than anything seen
        for hop in ("a", "b"):
            room.arrive(f"{hop}{number}", f"r{number}", graph="g", hop=hop, deadline_s=1e6, final=hop == "b")
            room.now_s += 4.0 + number
            room.finish(f"{hop}{number}")
    after = paths.factor("g")
    assert after > before * 1.05
    assert paths.room_s(graph, "a") == pytest.approx(paths.remaining(graph).after_s["a"] * after)
    sent = dispatch_in(room.arrive("x", "rx", graph="g", hop="a", deadline_s=room.now_s + 1e3))
    assert sent.budget_s == pytest.approx(1e3 - paths.room_s(graph, "a"))
    again = Profiles.from_records(json.loads(json.dumps(list(room.fabric.book.profiles.records()))), room.fabric.config)
    assert again.paths.factor("g") == after


def test_a_pipeline_with_a_call_that_was_not_answered_teaches_nothing():
    room = Room(workers=("w1",), min_evidence=3, pipeline_idle_s=1e9)
    room.send(GraphDeclared(at_s=0.0, graph=chain("a", "b")))
    hard_and_easy(room, 60)
    before = room.fabric.book.profiles.paths.factor("g")
    room.arrive("a99", "r99", graph="g", hop="a", deadline_s=1e6)
    room.now_s += 1e4
    room.finish("a99")
    room.arrive("b99", "r99", graph="g", hop="b", final=True)
    room.cancel("b99")
    assert room.fabric.book.profiles.paths.factor("g") == before

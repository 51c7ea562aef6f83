"""Tenants share a pool, by hand: who goes first, what counts, what is forgotten."""

from dataclasses import replace

import pytest

from amf.core.config import FabricConfig
from amf.core.decisions import Dispatch, Refuse
from amf.core.policy.sharing import by_service
from amf.core.state.shares import Shares
from kit import Room, kinds, prefix


def order_of(room: Room) -> list[str]:
    """Calls in the order in which they were dispatched."""
    dispatches = [each for record in room.records for each in record["decisions"] if each["type"] == "Dispatch"]
    return [each["call_id"] for each in dispatches]


def served(room: Room) -> dict[str, float]:
    return dict(room.fabric.book.pools["m"].shares._served)


def full(**config: object) -> Room:
    """One worker with one place, which is taken; every call has 1,024 uncached tokens and the same expected answer."""
    room = Room(workers=(), fair_output_weight=0.0, **config)
    room.join("w1", max_running=1)
    room.arrive("first", prompt=prefix(("first", 1_024)))
    return room


def wait(room: Room, call: str, tenant: str, due_s: float | None = None, tokens: int = 1_024) -> None:
    room.arrive(call, prompt=prefix((call, tokens)), tenant=tenant, deadline_s=due_s)


def next_goes(room: Room) -> str:
    """The running call ends; which is dispatched?"""
    (running,) = room.fabric.book.workers["w1"].flights.values()
    decisions = room.finish(running.call_id, prompt=running.prompt_tokens, cached=0, output=running.output_tokens)
    (dispatch,) = [decision for decision in decisions if isinstance(decision, Dispatch)]
    return dispatch.call_id


def test_steps_of_tenants():
    config = FabricConfig(fair_burst_tokens=10)
    tokens = {"e": 31.0, "a": 5.0, "d": 25.0, "b": 15.0, "c": 15.5}
    assert by_service(tokens, config) == {"a": 0, "b": 0, "c": 1, "d": 1, "e": 2}
    assert by_service({"a": 3.0, "b": 3.0, "c": 3.5}, FabricConfig(fair_burst_tokens=0)) == {"a": 0, "b": 0, "c": 1}
    assert by_service({}, config) == {}


def test_a_flood_of_deadlines_goes_first_only_as_far_as_the_burst():
    room = full(fair_burst_tokens=3_000)
    for number in range(6):
        wait(room, f"flood{number}", "flood", due_s=50.0 + number)
    wait(room, "one", "modest")
    wait(room, "two", "modest")
    went = [next_goes(room) for _ in range(8)]
    assert went == ["flood0", "flood1", "flood2", "one", "flood3", "two", "flood4", "flood5"]


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_a_weight_is_a_part(weight: float):
    room = full(fair_burst_tokens=0, tenant_weights={"a": weight})
    for number in range(30):
        wait(room, f"a{number}", "a")
        wait(room, f"b{number}", "b")
    went = [next_goes(room) for _ in range(30)]
    assert sum(call.startswith("a") for call in went) == pytest.approx(30 * weight / (1 + weight), abs=1)


def test_one_look_does_not_give_everything_to_one_tenant():
    room = Room(workers=("w1",), fair_burst_tokens=0)
    room.lose("w1")
    for number in range(4):
        wait(room, f"a{number}", "a", due_s=50.0 + number)
        wait(room, f"b{number}", "b")
    room.join("w1", max_running=6)
    assert [call[0] for call in order_of(room)] == ["a", "b", "a", "b", "a", "b"]


def test_a_long_queue_of_one_tenant_does_not_hide_the_calls_of_another():
    room = full(fair_burst_tokens=1_000, max_scan_calls=4)
    wait(room, "one", "modest")
    for number in range(20):
        wait(room, f"flood{number}", "flood", due_s=50.0 + number)
    assert [next_goes(room), next_goes(room)] == ["flood0", "one"]


def test_other_bundles_do_not_ask_whose_a_call_is():
    room = Room("least-slack", workers=(), fair_burst_tokens=0)
    room.join("w1", max_running=1)
    room.arrive("first")
    wait(room, "one", "modest")
    for number in range(5):
        wait(room, f"flood{number}", "flood", due_s=50.0 + number)
    assert [next_goes(room) for _ in range(6)] == [*(f"flood{number}" for number in range(5)), "one"]


def test_idleness_earns_nothing():
    room = full(fair_burst_tokens=0)
    for number in range(9):
        wait(room, f"a{number}", "a")
    for _ in range(5):
        next_goes(room)
    for number in range(4):
        wait(room, f"b{number}", "b")  # it was served nothing so far
    went = [next_goes(room) for _ in range(6)]
    assert [call[0] for call in went].count("a") == 3, "the newcomer starts level"


def test_what_nobody_could_use_is_lost_beyond_the_burst():
    shares = Shares(FabricConfig(fair_burst_tokens=100, fair_output_weight=2.0))
    for tenant in ("stuck", "busy", "busy"):
        shares.arrive(tenant)
    shares.leave("busy")
    shares.serve("busy", 500, 50)
    assert shares.served() == {"stuck": 0.0, "busy": 600.0}
    shares.leave("busy")
    shares.serve("busy", 10, 0)  # although it was ahead, since nothing of the other's could start
    assert shares.served() == {"stuck": 500.0}


def test_when_nothing_waits_all_begin_anew():
    shares = Shares(FabricConfig())
    shares.arrive("a")
    shares.leave("a")
    shares.serve("a", 1_000, 10)
    assert not shares._served
    shares.settle("a", 1_000, 10)
    shares.check_invariants([])


def test_a_call_counts_what_it_turned_out_to_be():
    room = Room(workers=(), fair_output_weight=4.0)
    room.join("w1", max_running=1)
    room.arrive("first")
    wait(room, "a1", "a")
    wait(room, "b1", "b")
    assert next_goes(room) == "a1"
    expected = room.fabric.book.workers["w1"].flights["a1"].output_tokens
    assert served(room) == {"b": 0.0, "a": 1_024 + 4.0 * expected}
    wait(room, "c1", "c")
    room.finish("a1", prompt=1_024, cached=1_000, output=expected + 30)
    assert served(room)["a"] == 24 + 4.0 * (expected + 30)


def test_an_attempt_without_an_answer_stays_as_it_counted():
    room = full(fair_burst_tokens=0)
    wait(room, "a1", "a")
    wait(room, "b1", "b")
    assert next_goes(room) == "a1"
    room.cancel("a1")
    assert order_of(room)[-1] == "b1"
    wait(room, "b2", "b")
    assert served(room).get("a") is None, "nobody waited any more"
    wait(room, "a2", "a")
    wait(room, "a3", "a")
    assert next_goes(room) == "a2"
    room.fail("a2")
    assert order_of(room)[-1] == "b2", "the attempt that failed counts"
    assert served(room)["a"] == 1_024


def test_a_tenant_that_never_has_two_calls_in_the_queue_does_not_escape():
    room = full(fair_burst_tokens=2_000)
    wait(room, "one", "modest")
    went = []
    for number in range(6):
        wait(room, f"flood{number}", "flood", due_s=50.0)
        went.append(next_goes(room))
    assert went[:4] == ["flood0", "flood1", "one", "flood2"]


def test_idle_tenants_are_forgotten():
    room = full(fair_burst_tokens=10**9, max_idle_tenants=2)
    wait(room, "patient", "patient")
    for number in range(6):
        wait(room, f"call{number}", f"tenant{number}", due_s=100.0)
        assert next_goes(room) == f"call{number}"
    assert sorted(served(room)) == ["patient", "tenant4", "tenant5"]
    next_goes(room)
    assert served(room) == {}


def test_a_full_queue_still_has_places_for_others():
    room = full(max_waiting_calls=4)
    for number in range(4):
        wait(room, f"flood{number}", "flood")
    refused = room.arrive("flood4", tenant="flood")
    assert kinds(refused) == ["Refuse"] and isinstance(refused[0], Refuse) and refused[0].code == "overloaded"
    assert kinds(room.arrive("one", tenant="modest")) == ["Admit", "Hold"]
    assert kinds(room.arrive("two", tenant="modest")) == ["Admit", "Hold"]
    assert kinds(room.arrive("three", tenant="modest")) == ["Refuse"], "two tenants: each may have half"
    assert kinds(room.arrive("other", tenant="third")) == ["Admit", "Hold"]
    for number in range(9):
        room.arrive(f"crowd{number}", tenant=f"crowd{number}")
    assert len(room.fabric.book.pools["m"].waiting) == 8, "twice the bound is the end"


def test_counters_may_not_drift():
    room = full()
    wait(room, "a1", "a")
    pool = room.fabric.book.pools["m"]
    pool.shares.arrive("nobody")
    with pytest.raises(AssertionError):
        room.fabric.check_invariants()


def test_weights_are_of_tenants_as_calls_name_them():
    config = replace(FabricConfig(), tenant_weights={"a": 4.0}, fair_output_weight=0.0)
    shares = Shares(config)
    for tenant in ("a", "a", "b", "b"):
        shares.arrive(tenant)
    for tenant in ("a", "b"):
        shares.leave(tenant)
        shares.serve(tenant, 100, 7)
    assert shares.served() == {"a": 25.0, "b": 100.0}

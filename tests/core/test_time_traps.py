"""Traps of scheduling by deadlines: late work, silent and repeated runs, state that leaks, memory that everybody waits for."""

from collections.abc import Callable

import pytest

from amf.core.decisions import Refuse
from amf.core.events import PipelineClosed
from kit import Room, dispatch_in, kinds, prefix

LONG = prefix(("long", 100_000))


def taught(policy: str = "fabric", **config: object) -> Room:
    """A room that has seen six runs of graph g with deadlines end, each of two calls of about 6 s with a pause between."""
    config = {"demand_evidence": 4, "min_evidence": 4, "over_floor_s": 5.0, **config}
    room = Room(policy, workers=("w1",), **config)
    for number in range(6):
        ask(room, f"t{number}", final=False)
        room.now_s += 3.0
        ask(room, f"t{number}", final=True)
    return room


def ask(room: Room, run: str, budget_s: float = 600.0, final: bool = True) -> None:
    call = f"{run}/{len(room.records)}"
    room.serve(call, run, prefix((call, 25_600)), graph="g", hop="h", deadline_s=room.now_s + budget_s, final=final)


def arrive(room: Room, run: str, budget_s: float = 600.0, **changes: object) -> list[object]:
    return room.arrive(run, run, prefix((run, 25_600)), graph="g", hop="h", deadline_s=room.now_s + budget_s, **changes)


def refused(decisions: list[object]) -> str:
    return next((each.code for each in decisions if isinstance(each, Refuse)), "")


def burst(room: Room, budget_s: float, most: int = 200) -> int:
    """How many runs start before one is refused."""
    for number in range(most):
        if code := refused(arrive(room, f"burst{number}", budget_s)):
            assert code == "pipeline_admission_refused"
            return number
    raise AssertionError("none was refused")


# --- Late work ------------------------------------------------------------------------------------------------------------


def test_what_is_late_is_no_demand_any_more():
    room = taught()
    room.lose("w1")
    room.join("w1")  # so that all of them wait or run for long
    admitted = burst(room, 100.0)
    assert admitted > 2 and refused(arrive(room, "more", 100.0)) == "pipeline_admission_refused"
    room.now_s += 101.0
    assert refused(arrive(room, "later", 100.0)) == "", "the late ones are still live, and claim nothing"
    assert room.fabric.totals()["live_pipelines"] == admitted + 1
    assert all(room.fabric.is_live(f"burst{number}") for number in range(admitted))


def test_where_late_runs_are_given_up_none_of_them_stands_before_one_in_time():
    room = Room("fabric-hard", workers=("w1",))
    room.arrive("busy", prompt=LONG)
    for number in range(5):
        room.arrive(f"late{number}", prompt=prefix((f"late{number}", 100_000)), deadline_s=20.0)
    room.arrive("good", prompt=prefix(("good", 100_000)), deadline_s=200.0)
    ended = room.wake(20.0)
    assert [each.code for each in ended if isinstance(each, Refuse)] == ["deadline_exceeded"] * 5
    room.now_s = 27.0
    assert dispatch_in(room.first_token("busy")).call_id == "good"


def test_a_late_call_is_not_the_most_urgent():
    """It is given its time again, and again twice as much: it goes after what can be in time sooner, before what has longer.
    Calls take 27 s, so at 54 s, when `soon` has been served, late0 (10 s) should have started at -17 s and is renewed to
    -17 + 10 x 15 = 133 s, late1 (12 s) to -15 + 12 x 7 = 69 s; `far` may start at 473 s."""
    room = Room("fabric", workers=("w1",))
    room.arrive("busy", prompt=LONG)
    for name, deadline_s in (("late0", 10.0), ("late1", 12.0), ("soon", 34.0), ("far", 500.0)):
        room.arrive(name, prompt=prefix((name, 100_000)), deadline_s=deadline_s)
    order, sent = [], "busy"
    for _ in range(4):
        room.now_s += 27.0
        decisions = room.first_token(sent) + room.finish(sent, prompt=100_000, cached=0)
        sent = next(each.call_id for each in decisions if type(each).__name__ == "Dispatch")
        order.append(sent)
    assert order == ["soon", "late1", "late0", "far"]


# --- State that leaks -----------------------------------------------------------------------------------------------------


def end_final(room: Room, run: str) -> None:
    room.serve(f"{run}/1", run, graph="g", hop="h", deadline_s=room.now_s + 50.0)
    room.serve(f"{run}/2", run, graph="g", hop="h", final=True)


def end_silent(room: Room, run: str) -> None:
    room.serve(f"{run}/1", run, graph="g", hop="h", deadline_s=room.now_s + 50.0)
    room.now_s += 100.0


def end_closed(room: Room, run: str) -> None:
    room.serve(f"{run}/1", run, graph="g", hop="h", deadline_s=room.now_s + 50.0)
    room.close(run)


def end_cancelled(room: Room, run: str) -> None:
    room.arrive(f"{run}/1", run, graph="g", hop="h", deadline_s=room.now_s + 50.0)
    room.arrive(f"{run}/2", run, graph="g", hop="h")
    room.send(PipelineClosed(at_s=room.now_s, run_id=run, cancelled=True))


def end_expired(room: Room, run: str) -> None:
    room.arrive(f"{run}/1", run, graph="g", hop="h", deadline_s=room.now_s + 50.0)
    room.wake(room.now_s + 51.0)
    if room.fabric.is_live(run):  # where late runs are kept it is answered all the same
        room.finish(f"{run}/1")


def end_failed(room: Room, run: str) -> None:
    room.arrive(f"{run}/1", run, graph="g", hop="h", deadline_s=room.now_s + 50.0)
    room.fail(f"{run}/1", retryable=False)


def end_gone(room: Room, run: str) -> None:
    room.arrive(f"{run}/1", run, graph="g", hop="h", deadline_s=room.now_s + 50.0)
    room.cancel(f"{run}/1")


def end_refused(room: Room, run: str) -> None:
    room.arrive(f"{run}/1", run, graph="g", hop="h", deadline_s=room.now_s - 1.0)


ENDS = (end_final, end_silent, end_closed, end_cancelled, end_expired, end_failed, end_gone, end_refused)


@pytest.mark.parametrize("policy", ["fabric", "fabric-hard"])
@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
def test_whatever_way_runs_end_nothing_of_them_is_left(policy: str, end: Callable[[Room, str], None]):
    room = Room(policy, min_evidence=4, pipeline_idle_s=600.0, max_closed_pipelines=10)
    for number in range(150):
        end(room, f"r{number}")
    room.wake(room.now_s + 601.0)
    book = room.fabric.book
    assert len(book.pipelines) == 0 and not book.pipelines.calls() and not book.pipelines.silent
    assert len(book.closed) <= 10
    for name in ("lanes", "expiries", "silences", "pledges"):
        assert left_in(getattr(book, name)) == 0, name
    assert not any(home.lanes for home in book.lanes.homes.values())
    assert all(left_in(pool.shares) == 0 and not pool.waiting for pool in book.pools.values())
    assert all(not worker.flights and not worker.committed_tokens for worker in book.workers.values())


def left_in(keeper: object) -> int:
    """How many entries its containers hold, without a heap's stale ones at its top and without what is kept by worker."""
    if hasattr(keeper, "next_s"):
        keeper.next_s()
    held = [each for name, each in vars(keeper).items() if name not in ("homes", "_config")]
    sizes = [len(each) if isinstance(each, (dict, list, set)) else 0 for each in held]
    return sum(sizes) + sum(left_in(each) for each in held if hasattr(each, "next_s"))


# --- Silent runs ----------------------------------------------------------------------------------------------------------


def test_a_silent_run_is_no_demand_is_learned_once_and_counts_again_when_it_comes_back():
    room = taught()
    demand = room.fabric.book.profiles.demand.of("g")
    assert demand is not None
    before = demand.pipelines
    ask(room, "r", final=False)
    pledged = pledged_s(room)
    assert pledged > 0.0 and demand.pipelines == before
    room.wake(room.now_s + 30.0)
    assert (pledged_s(room), demand.pipelines) == (0.0, before + 1)
    room.arrive("r/back", "r", prefix(("back", 1_600)), graph="g", hop="h")
    assert pledged_s(room) > 0.0 and room.fabric.run_report("r")["probably_over"] is False
    room.finish("r/back", prompt=1_600)
    room.wake(room.now_s + 300.0)
    room.close("r")
    assert demand.pipelines == before + 1, "its end was learned before"


def pledged_s(room: Room) -> float:
    return sum(seconds for _, seconds in room.fabric.book.pledges.of_pool("m"))


def test_a_silent_run_makes_room_for_a_new_one_where_no_more_may_be_live():
    room = taught(max_live_pipelines=2)
    ask(room, "quiet", final=False)
    room.wake(room.now_s + 30.0)
    arrive(room, "busy")
    assert refused(arrive(room, "new")) == "" and not room.fabric.is_live("quiet")
    assert room.fabric.run_report("quiet")["status"] == "idle"
    assert refused(arrive(room, "newer")) == "pipeline_admission_refused", "neither of the two is silent"


def test_a_silent_run_makes_no_room_for_one_that_is_refused():
    room = taught(max_live_pipelines=1)
    ask(room, "quiet", final=False)
    room.wake(room.now_s + 30.0)
    assert refused(arrive(room, "hopeless", 0.001)) == "deadline_infeasible"
    assert room.fabric.is_live("quiet") and refused(room.arrive("back", "quiet", graph="g", hop="h")) == ""


# --- Run ids --------------------------------------------------------------------------------------------------------------


def test_a_run_that_was_closed_and_comes_back_begins_anew():
    room = taught()
    opened = room.fabric.totals()["opened"]
    ask(room, "r")
    assert room.fabric.run_report("r")["status"] == "final"
    assert "Admit" in kinds(arrive(room, "r", 60.0))
    assert room.fabric.book.pipelines.get("r").deadline_s == room.now_s + 60.0
    assert room.fabric.totals()["opened"] == opened + 2 and room.fabric.run_report("r")["status"] == "live"


def test_a_run_that_was_ended_at_its_deadline_does_not_come_back():
    room = taught("fabric-hard")
    arrive(room, "r", 30.0)
    room.wake(room.now_s + 31.0)
    assert refused(arrive(room, "r", 600.0)) == "deadline_exceeded" and not room.fabric.is_live("r")


def test_two_runs_of_one_id_are_one_run_with_the_first_deadline():
    room = taught()
    opened, deadline_s = room.fabric.totals()["opened"], room.now_s + 50.0
    assert "Admit" in kinds(room.arrive("a", "same", graph="g", hop="h", deadline_s=deadline_s))
    assert "Admit" not in kinds(room.arrive("b", "same", graph="g", hop="h", deadline_s=deadline_s + 500.0))
    assert room.arrive("b", "same") == [], "a call of a known id changes nothing"
    assert room.fabric.book.pipelines.get("same").deadline_s == deadline_s
    assert room.fabric.totals()["opened"] == opened + 1 and room.fabric.totals()["live_calls"] == 2


def test_an_admitted_run_is_served_although_a_new_one_would_be_refused():
    room = taught()
    burst(room, 100.0)
    assert refused(room.arrive("next", "burst0", prefix(("next", 25_600)), graph="g", hop="h")) == ""
    assert refused(arrive(room, "other", 100.0)) == "pipeline_admission_refused"


# --- Memory ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["fabric", "fabric-hard"])
def test_runs_whose_contexts_fill_all_memory_still_all_end(policy: str):
    """Five contexts of 150,000 tokens where there is room for three: each run's next call needs what the others hold."""
    room = Room(policy, workers=("w1",))
    runs = [f"r{number}" for number in range(5)]
    for turn in range(3):
        waiting = set(runs)
        for run in runs:
            prompt = prefix((run, 150_000), ("turn", 1_600 * turn), block=32)
            decisions = room.arrive(f"{run}.{turn}", run, prompt, deadline_s=1e6 if turn == 0 else None)
            waiting -= served(room, decisions)
        for _ in range(200):
            if not waiting:
                break
            waiting -= served(room, room.wake(room.now_s + 10.0))
        assert not waiting, f"turn {turn}: nobody lets the others go on"
    assert room.fabric.totals()["finished"] == 15


def served(room: Room, decisions: list[object]) -> set[str]:
    """Finish what was sent, and what is sent then. The runs whose calls finished."""
    found: set[str] = set()
    sent = [each.call_id for each in decisions if type(each).__name__ == "Dispatch"]
    while sent:
        call_id = sent.pop()
        room.now_s += 40.0
        more = room.first_token(call_id) + room.finish(call_id, prompt=150_000, cached=0)
        found.add(call_id.split(".")[0])
        sent += [each.call_id for each in more if type(each).__name__ == "Dispatch"]
    return found

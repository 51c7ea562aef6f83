"""Branch groups: who is needed with what odds, what ends with a decision, what is launched at which price."""

from dataclasses import replace
from itertools import product
from math import prod

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amf.core.decisions import Cancel, Decision, Dispatch, Hold, Refuse
from amf.core.events import BranchDecided, GraphDeclared
from amf.core.graph import graph_from_dict
from amf.core.state.branches import fewer_than
from amf.core.types import BranchHint, Call
from kit import Room, dispatch_in, prefix

CONTEXT = prefix(("context", 20_000))
CALL = Call(call_id="seen", run_id="seen", pool="m")
BUSY = 40  # calls on the worker, so that speculation has its price


def decide(room: Room, group: str = "g", commit: tuple[str, ...] = (), discard: tuple[str, ...] = ()) -> list[Decision]:
    return room.send(BranchDecided(at_s=room.now_s, run_id="r", group=group, committed=commit, discarded=discard))


def launch(room: Room, name: str, branch: str = "", **hint: object) -> list[Decision]:
    hinted = BranchHint(**hint) if hint else None  # type: ignore[arg-type]
    return room.arrive(name, "r", CONTEXT, hop=name, branch=branch or f"g/{name}", branch_hint=hinted)


def ended(decisions: list[Decision]) -> tuple[set[str], set[str]]:
    """Calls that were stopped on their worker, and those whose client was told that its branch has lost."""
    refused = {each.call_id for each in decisions if isinstance(each, Refuse) and each.code == "branch_cancelled"}
    return {each.call_id for each in decisions if isinstance(each, Cancel)}, refused


def crowded(room: Room, calls: int = BUSY) -> Room:
    for number in range(calls):
        room.arrive(f"other-{number}", prompt=prefix((f"other-{number}", 2_000)))
        room.first_token(f"other-{number}")
    return room


# --- Decisions ------------------------------------------------------------------------------------------------------------


def test_a_commit_ends_all_others_at_once() -> None:
    room = Room(workers=["w1"])
    for name in "abc":
        launch(room, name)
    room.first_token("a")
    room.finish("a")
    assert ended(decide(room, commit=("a",))) == ({"b", "c"}, {"b", "c"})
    assert not room.fabric.book.workers["w1"].flights and room.fabric.book.counts["cancelled"] == 2
    (refusal,) = [each for each in launch(room, "late", "g/d") if isinstance(each, Refuse)]
    assert refusal.code == "branch_cancelled"
    assert dispatch_in(launch(room, "more", "g/a")), "the winner goes on"


def test_who_comes_late_is_told_why() -> None:
    room = Room(workers=["w1"])
    for branch in ("g/a", "g/b", "g/b/h/x", "q/a"):
        room.arrive(branch, "r", CONTEXT, branch=branch)
    decide(room, commit=("a",))
    decide(room, "q", discard=("a",))
    asked = {"g/b": "another alternative of g was committed", "q/a": "it was discarded"}
    asked |= {"g/new": asked["g/b"], "g/b/h/x": "another alternative of g was committed, not branch g/b around it"}
    asked["q/a/h/x"] = "the branch q/a around it was discarded"
    for place in ("live", "ended"):
        for branch, why in asked.items():
            (refusal,) = [
                each for each in room.arrive(f"{place}-{branch}", "r", branch=branch) if isinstance(each, Refuse)
            ]
            assert (refusal.code, refusal.message) == ("branch_cancelled", f"branch {branch} has lost: {why}")
        room.finish("g/a")
        room.close("r")
    assert dispatch_in(room.arrive("anew", "r", branch="g/a")), "the winner's run may go on"


def test_a_discarded_alternative_ends_and_the_others_go_on() -> None:
    room = Room(workers=["w1"])
    for name in "ab":
        launch(room, name)
    assert ended(decide(room, discard=("a",))) == ({"a"}, {"a"})
    assert set(room.fabric.book.workers["w1"].flights) == {"b"}
    assert ended(launch(room, "again", "g/a")) == (set(), {"again"})


def test_a_quorum_is_decided_by_its_last_commit() -> None:
    room = Room(workers=["w1"])
    for name in "abc":
        launch(room, name, kind="quorum", k=2)
    assert ended(decide(room, commit=("a",))) == (set(), set())
    assert ended(decide(room, commit=("b",))) == ({"c"}, {"c"})


def test_inner_branches_share_the_fate_of_outer_ones() -> None:
    room = Room(workers=["w1"])
    launch(room, "a1", "g/a/h/1")
    launch(room, "a2", "g/a/h/2")
    launch(room, "b1", "g/b/h/1")
    assert ended(decide(room, "g/a/h", commit=("1",))) == ({"a2"}, {"a2"})
    assert ended(decide(room, commit=("b",))) == ({"a1"}, {"a1"})
    assert ended(launch(room, "a3", "g/a/i/1")) == (set(), {"a3"}), "also in a group that is new"
    assert dispatch_in(launch(room, "b2", "g/b/h/2"))


def test_who_goes_on_from_one_alternative_commits_it() -> None:
    room = Room(workers=["w1"])
    for name in "abc":
        launch(room, name)
    for name in "ab":
        room.finish(name)
    both = room.arrive("judge", "r", CONTEXT, hop="judge", parents=("a", "b"))
    assert ended(both) == (set(), set()), "it reads two, so it has not decided"
    assert ended(room.arrive("next", "r", CONTEXT, hop="next", parents=("b",))) == ({"c"}, {"c"})
    groups = room.fabric.run_report("r")["groups"]
    fates = {name: each["fate"] for name, each in groups["g"]["alternatives"].items()}
    assert fates == {"a": "discarded", "b": "committed", "c": "discarded"}


def test_a_call_inside_the_branch_commits_nothing() -> None:
    room = Room(workers=["w1"])
    for name in "ab":
        launch(room, name)
    room.finish("a")
    inside = room.arrive("a2", "r", CONTEXT, hop="a2", parents=("a",), branch="g/a")
    assert ended(inside) == (set(), set()) and set(room.fabric.book.workers["w1"].flights) == {"b", "a2"}


def test_decisions_about_the_unknown_change_nothing() -> None:
    room = Room(workers=["w1"])
    assert decide(room, commit=("a",)) == []
    launch(room, "a")
    assert ended(decide(room, "h", commit=("a",))) == (set(), set())
    decide(room, commit=("a",))
    assert ended(decide(room, discard=("a",))) == (set(), set()), "what is committed stays so"
    assert set(room.fabric.book.workers["w1"].flights) == {"a"}


def test_groups_and_alternatives_are_bounded() -> None:
    room = Room(workers=["w1"], max_branch_groups=2, max_branch_members=2)
    for number in range(4):
        launch(room, f"g{number}", f"g{number}/a")
        launch(room, f"m{number}", f"g3/{number}")
    assert len(room.fabric.run_report("r")["groups"]) == 2
    for name in ("g0", "m0", "m3"):
        room.finish(name)


# --- Odds -----------------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0.0, 1.0), max_size=6), st.integers(0, 7))
def test_fewer_successes_than_wanted(odds: list[float], count: int) -> None:
    ways = product((0, 1), repeat=len(odds))
    expected = sum(
        prod(p if hit else 1.0 - p for p, hit in zip(odds, way, strict=True)) for way in ways if sum(way) < count
    )
    assert fewer_than(count, odds) == pytest.approx(expected, abs=1e-9)


def odds(room: Room, branch: str) -> float:
    branches = room.fabric.book.pipelines.get("r").branches
    return branches.odds(branch, lambda group, member: member.probability or 0.5, room.now_s, 10.0)


def test_the_odds_follow_who_is_ahead() -> None:
    room = Room("fabric-kill", workers=["w1"])
    for name in "abcd":
        launch(room, name, probability=0.25)
    assert [odds(room, f"g/{name}") for name in "abcd"] == [1.0, 0.75, 0.75**2, 0.75**3]
    decide(room, discard=("a",))
    assert [odds(room, f"g/{name}") for name in "bcd"] == [1.0, 0.75, 0.75**2]
    room.finish("b")
    assert odds(room, "g/c") == 0.75, "it may still be found good"
    room.wake(room.now_s + 20.0)
    assert odds(room, "g/c") == 1.0, "nobody says anything"


def test_all_of_the_best_are_needed_unless_one_may_be_good_enough() -> None:
    room = Room("fabric-kill", workers=["w1"])
    for name in "ab":
        launch(room, name, kind="best_of")
        launch(room, f"{name}2", f"h/{name}", kind="best_of", probability=0.4)
    assert [odds(room, branch) for branch in ("g/a", "g/b", "h/a", "h/b")] == [1.0, 1.0, 1.0, 0.6]


def test_a_prediction_is_needed_as_often_as_it_is_right_and_odds_multiply() -> None:
    room = Room("fabric-kill", workers=["w1"])
    launch(room, "a", "p/a", kind="predicted", probability=0.3)
    launch(room, "b", "p/a/q/x", kind="predicted", probability=0.5)
    assert odds(room, "p/a") == 0.3 and odds(room, "p/a/q/x") == pytest.approx(0.15)
    decide(room, "p", commit=("a",))
    assert odds(room, "p/a/q/x") == 0.5


def test_a_declared_group_says_what_it_is() -> None:
    room = Room("fabric-kill", workers=["w1"])
    hops = {name: {"model": "m"} for name in ("x", "y")}
    group = {"name": "p", "kind": "predicted", "alternatives": ["x", "y"], "p": [0.7, 0.3]}
    graph = graph_from_dict({"name": "G", "hops": hops, "groups": [group]})
    room.send(GraphDeclared(at_s=0.0, graph=graph))
    room.arrive("1", "r", CONTEXT, graph="G", hop="x", branch="p/x")
    assert odds(room, "p/x") == 0.7 and room.fabric.run_report("r")["groups"]["p"]["kind"] == "predicted"


def test_success_is_learned_by_place() -> None:
    room = Room("fabric-kill", workers=["w1"])
    learned = room.fabric.book.outcomes
    for number in range(40):
        room.arrive(f"{number}", f"run-{number}", CONTEXT, graph="G", hop="h", branch="g/a")
        room.finish(f"{number}")
        room.now_s += 4.0
        discarded = () if number % 4 == 0 else ("a",)
        committed = ("a",) if number % 4 == 0 else ()
        told = BranchDecided(
            at_s=room.now_s, run_id=f"run-{number}", group="g", committed=committed, discarded=discarded
        )
        room.send(told)
    assert learned.odds(("G", "g"), None) == pytest.approx((2 + 10) / 44)
    assert learned.test_s(("G", "g")) == pytest.approx(4.0)
    assert learned.odds(("G", "other"), 0.9) == 0.9


# --- Launching ------------------------------------------------------------------------------------------------------------


def test_an_idle_fleet_launches_and_a_busy_one_does_not() -> None:
    idle = Room(workers=["w1"])
    assert all(dispatch_in(launch(idle, name, probability=0.9)) for name in "ab")
    busy = crowded(Room(workers=["w1"]))
    assert dispatch_in(launch(busy, "a", probability=0.9)), "the first is no speculation"
    (hold,) = [each for each in launch(busy, "b", probability=0.9) if isinstance(each, Hold)]
    assert hold.because.reason.startswith("not launched: needed with odds 0.10")
    assert hold.because.alternatives
    unpriced = crowded(Room("fabric-kill", workers=["w1"]))
    assert all(dispatch_in(launch(unpriced, name, probability=0.9)) for name in "ab")


def test_what_is_not_launched_runs_when_those_ahead_fail() -> None:
    room = crowded(Room(workers=["w1"]))
    for name in "abc":
        launch(room, name, probability=0.9)
    promoted = decide(room, discard=("a",))
    assert [each.call_id for each in promoted if isinstance(each, Dispatch)] == ["b"]


def test_what_is_not_launched_is_told_that_it_has_lost() -> None:
    room = crowded(Room(workers=["w1"]))
    for name in "ab":
        launch(room, name, probability=0.9)
    assert ended(decide(room, commit=("a",))) == (set(), {"b"})


def test_the_launch_says_its_price() -> None:
    room = crowded(Room(workers=["w1"]), 2)
    launch(room, "a", probability=0.1)
    placed = dispatch_in(launch(room, "b", probability=0.1))
    assert placed.because.reason.startswith("a branch needed with odds 0.90: saves ")


WORKED = {  # docs/speculation.md: calls on the worker -> (saves, costs) of the second and third attempt
    0: ((2.83, 0.22), (1.42, 0.66)),
    2: ((2.83, 0.66), (1.42, 1.33)),
    8: ((2.83, 1.99), (1.42, 3.32)),
    24: ((2.83, 5.53), (1.42, 8.30)),
}


@pytest.mark.parametrize("calls", WORKED)
def test_the_worked_prices(calls: int) -> None:
    room = Room(workers=["w1"])
    for number in range(calls):
        room.arrive(f"o{number}", prompt=prefix((f"o{number}", 2_000)), max_output_tokens=300)
        room.first_token(f"o{number}")
    launch(room, "a", probability=0.5)
    room.first_token("a")
    for name, (saves_s, price_s) in zip("bc", WORKED[calls], strict=True):
        placed, *_ = (each for each in launch(room, name, probability=0.5) if isinstance(each, Dispatch | Hold))
        assert isinstance(placed, Dispatch) == (saves_s >= price_s)
        verb = "for" if isinstance(placed, Dispatch) else "s and costs"
        assert f"saves {saves_s:.2f} s {verb.removeprefix('s ')} {price_s:.2f} s" in placed.because.reason
        room.first_token(name)


def test_the_likely_is_launched_where_the_unlikely_is_not() -> None:
    """The work of what is needed is no loss, however busy the worker is."""
    for probability, launched in ((0.95, True), (0.05, False)):
        room = crowded(Room(workers=["w1"]))
        room.fabric.book.profiles.observe_call(replace(CALL, pool="m"), 100, 5.0)
        decisions = launch(room, "p", "p/x", kind="predicted", probability=probability)
        assert any(isinstance(each, Dispatch) for each in decisions) == launched, probability


def test_speculation_goes_behind_what_is_needed() -> None:
    room = Room("fabric-kill", workers=["w1"])
    launch(room, "a")
    first, second = dispatch_in(room.arrive("needed")), dispatch_in(launch(room, "b"))
    assert second.urgency_s > first.urgency_s + 1e6


def test_a_branch_that_is_too_late_to_matter_is_given_up() -> None:
    room = Room(workers=["w1"])
    room.arrive("a", "r", CONTEXT, hop="a", branch="g/a", deadline_s=50.0)
    room.arrive("b", "r", CONTEXT, hop="b", branch="g/b")
    assert ended(room.wake(49.0)) == (set(), set())
    assert ended(room.wake(51.0)) == ({"b"}, {"b"}), "the first is needed, late as it is"


# --- Any order of events ----------------------------------------------------------------------------------------------------

ACTIONS = ("launch", "first", "finish", "fail", "commit", "discard", "cancel", "lose", "join", "wake", "read", "close")
PATHS = ("g/a", "g/b", "g/c", "g/a/h/x", "g/a/h/y", "q/a", "q/b", "q/c")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 63)), max_size=40),
    st.sampled_from(["fabric", "fabric-kill"]),
)
def test_every_call_ends_once_and_gives_back_what_it_held(steps: list[tuple[str, int]], policy: str) -> None:
    room = Room(policy, workers=["w1", "w2"])
    sent = 0
    for action, number in steps:
        book = room.fabric.book
        running = sorted(call_id for worker in book.workers.values() for call_id in worker.flights)
        call_id = running[number % len(running)] if running else ""
        attempt = book.pipelines.call(call_id).attempt if call_id and book.pipelines.call(call_id) else 1
        path = PATHS[number % len(PATHS)]
        group, _, alternative = path.rpartition("/")
        match action:
            case "launch":
                launch(room, f"c{sent}", path, kind="quorum" if path[0] == "q" else "first_success", k=2)
                sent += 1
            case "read":
                room.arrive(f"c{sent}", "r", hop=f"c{sent}", parents=(f"c{number % (sent + 1)}",))
                sent += 1
            case "first" if call_id:
                room.first_token(call_id, attempt)
            case "finish" if call_id:
                room.finish(call_id, attempt)
            case "fail" if call_id:
                room.fail(call_id, attempt)
            case "cancel":
                room.cancel(f"c{number % (sent + 1)}")
            case "commit":
                decide(room, group, commit=(alternative,))
            case "discard":
                decide(room, group, discard=(alternative,))
            case "lose":
                room.lose(f"w{1 + number % 2}")
            case "join":
                room.join(f"w{1 + number % 2}")
            case "wake":
                room.wake(room.now_s + number / 4.0)
            case "close":
                room.close("r")
    room.close("r")
    book = room.fabric.book
    assert not book.pipelines.calls() and not any(worker.flights for worker in book.workers.values())
    assert all(worker.committed_tokens == 0 for worker in book.workers.values())
    outcomes = sum(book.counts[name] for name in ("finished", "failed", "refused", "cancelled"))
    assert book.counts["calls"] == outcomes

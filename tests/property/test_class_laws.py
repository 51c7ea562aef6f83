"""Deadlines before throughput before background, and nothing waits for ever: what `least_slack` promises each class."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from amf.core.policy.interface import View
from amf.core.policy.ordering import least_slack
from amf.core.state.pipelines import CallState
from amf.core.types import SloClass
from kit import Room, dispatch_in, prefix

LAPSE_S = 10.0
PATIENCE = {SloClass.INTERACTIVE: 1, SloClass.THROUGHPUT: 1, SloClass.BACKGROUND: 4}  # in lapses behind a deadline

classes = st.sampled_from(sorted(SloClass))
calls = st.lists(st.tuples(classes, st.none() | st.integers(1, 9)), min_size=2, max_size=10)


def busy_room() -> Room:
    """One worker with one place, which is taken."""
    room = Room(workers=(), lapse_s=LAPSE_S)
    room.join("w1", max_running=1)
    ask(room, "first")
    return room


def ask(room: Room, call: str, run: str = "", due_s: float | None = None, slo_class: SloClass = SloClass.INTERACTIVE):
    prompt = prefix((run or call, 1_024))
    return room.arrive(call, run or call, prompt, deadline_s=due_s, slo_class=slo_class)


def end_one(room: Room) -> str:
    """The running call ends. Returns which is dispatched instead, if any."""
    (running,) = room.fabric.book.workers["w1"].flights.values()
    decisions = room.finish(running.call_id, prompt=running.prompt_tokens, cached=0, output=running.output_tokens)
    return dispatch_in(decisions).call_id if room.fabric.book.workers["w1"].flights else ""


def view_of(room: Room) -> View:
    book = room.fabric.book
    return View(
        now_s=room.now_s,
        config=room.fabric.config,
        pipelines=book.pipelines,
        profiles=book.profiles,
        lanes=book.lanes,
        outcomes=book.outcomes,
    )


@settings(max_examples=100, deadline=None)
@given(calls, st.randoms(use_true_random=False))
def test_runs_that_begin_together_go_by_deadline_then_throughput_then_background(asked, random):
    """Where the deadlines are nearer than `lapse_s`."""
    room = busy_room()
    order = list(enumerate(asked))
    random.shuffle(order)
    for number, (slo_class, due_s) in order:
        ask(room, f"c{number:02}", due_s=due_s, slo_class=slo_class)
    went = [end_one(room) for _ in asked]
    ranks = [
        (0, due_s) if due_s is not None else (PATIENCE[slo_class], 0)
        for slo_class, due_s in (asked[int(call[1:])] for call in went)
    ]
    assert ranks == sorted(ranks)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["ask", "ask", "end", "wait"]), st.integers(0, 5), classes), max_size=60),
    st.sampled_from([0.5, 3.0, 8.0]),
)
def test_a_call_without_a_deadline_is_as_urgent_as_one_with_a_deadline_so_many_lapses_after_it(played, step_s: float):
    """At the latest: `lapse_s` after it arrived, and one more for its class, four for background. At the earliest: these
    after its run began. And a throughput call goes before a background call that waited up to three lapses longer."""
    room = busy_room()
    for number, (kind, run, slo_class) in enumerate(played):
        if kind == "ask":
            ask(room, f"c{number}", f"r{run}", slo_class=slo_class)
        elif kind == "end" and room.fabric.book.workers["w1"].flights:
            end_one(room)
        else:
            room.wake(room.now_s + step_s)
        view = view_of(room)
        for state in room.fabric.book.pools["m"].waiting.values():
            start_s = least_slack(state, None, view) + view.profiles.expected_service_s(state.call)
            patience_s = LAPSE_S * PATIENCE[state.call.slo_class]
            opened_s = room.fabric.book.pipelines.get(state.call.run_id).opened_s
            assert opened_s + patience_s - 1e-6 <= start_s <= state.arrived_s + LAPSE_S + patience_s + 1e-6
            by_class = [
                least_slack(of_class(state, each), None, view) for each in (SloClass.THROUGHPUT, SloClass.BACKGROUND)
            ]
            assert abs(by_class[1] - by_class[0] - 3 * LAPSE_S) < 1e-6


def of_class(state: CallState, slo_class: SloClass) -> CallState:
    return replace(state, call=replace(state.call, slo_class=slo_class))


@settings(max_examples=40, deadline=None)
@given(st.floats(0.5, 3.0), st.floats(0.5, 3.0), st.floats(1.0, 20.0), st.integers(0, 10), classes)
def test_in_any_overload_of_deadlines_a_call_waits_for_those_only_that_are_due_before_it(
    every_s: float, service_s: float, deadline_s: float, backlog: int, slo_class: SloClass
):
    """Runs with a deadline `deadline_s` away arrive for ever, faster than they are served or not. A run of one call without
    a deadline waits for what came before it, and for what arrives so long before its patience ends; for nothing else."""
    room = busy_room()
    for number in range(backlog):
        ask(room, f"before{number}", due_s=deadline_s)
    ask(room, "patient", slo_class=slo_class)
    patience_s = LAPSE_S * PATIENCE[slo_class]
    arrived_s: dict[str, float] = {f"before{number}": 0.0 for number in range(backlog)}
    next_arrival_s, next_end_s, went = every_s, service_s, ""
    while went != "patient":
        room.now_s = min(next_arrival_s, next_end_s)
        if next_arrival_s <= next_end_s:
            name = f"c{len(arrived_s)}"
            arrived_s[name] = room.now_s
            ask(room, name, due_s=room.now_s + deadline_s)
            next_arrival_s += every_s
            continue
        went = end_one(room)
        next_end_s = room.now_s + service_s
        if went != "patient":
            assert arrived_s[went] + deadline_s <= patience_s + 1e-6
    most = backlog + max(0.0, patience_s - deadline_s) / every_s
    assert room.now_s <= (most + 2) * service_s + 1e-6

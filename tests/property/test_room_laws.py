"""What is passed over without a look would have been held by one."""

from dataclasses import replace

from hypothesis import example, given, settings
from hypothesis import strategies as st

from amf.core.policy.bundles import policies_named
from amf.core.policy.interface import PoolView
from amf.core.policy.room import may_start
from amf.core.policy.routing import reserves
from amf.core.state.pipelines import CallState
from kit import Room, prefix

FABRIC = policies_named("fabric")

steps = st.lists(
    st.tuples(
        st.sampled_from(["arrive", "arrive", "first", "finish", "fail", "wait", "cancel"]),
        st.integers(0, 9),
        st.integers(1, 24),
        st.booleans(),
    ),
    min_size=10,
    max_size=80,
)


class Asked:
    """`may_start`, compared with what a look would have said."""

    def __init__(self) -> None:
        self.passed_over = 0

    def __call__(self, state: CallState, view: PoolView) -> bool:
        if may_start(state, view):
            return True
        self.passed_over += 1
        placement = FABRIC.route(state, view)
        assert placement.worker is None, placement
        assert not placement.reserve or reserves(state, view)
        return False


def play(happenings: list[tuple[str, int, int, bool]], **config: object) -> int:
    room, asked = Room(**config), Asked()
    room.fabric.policies = replace(FABRIC, may_start=asked)
    for number, (kind, run, size, urgent) in enumerate(happenings):
        running = [
            state
            for worker in room.fabric.book.workers.values()
            for call in worker.flights
            if (state := room.fabric.book.pipelines.call(call))
        ]
        state = running[size % len(running)] if running else None
        match kind:
            case "arrive":
                prompt = prefix(("system", 1_024), (f"run{run}", size * 16_384), block=1_024)
                room.arrive(f"c{number}", f"r{run}", prompt, deadline_s=room.now_s + 500.0 if urgent else None)
            case "first" if state:
                room.first_token(state.call.call_id, state.attempt)
            case "finish" if state:
                room.finish(state.call.call_id, state.attempt, prompt=state.call.prompt_tokens)
            case "fail" if state:
                room.fail(state.call.call_id, state.attempt)
            case "cancel" if state:
                room.cancel(state.call.call_id)
            case _:
                room.wake(room.now_s + size * 3.0)
    return asked.passed_over


ONCE_WRONG = [  # a sibling of the first call of a pipeline, which came before there was a lane
    *[("arrive", 0, size, False) for size in (2, 1)],
    *[("first", 0, size, False) for size in (1, 2)],
    *[("arrive", run, size, False) for run, size in ((0, 1), (1, 2), (1, 1))],
    ("wait", 0, 1, False),
    ("fail", 1, 2, False),
    ("arrive", 0, 5, False),
    ("arrive", 8, 3, True),
    ("arrive", 0, 16, False),
    ("arrive", 8, 24, False),
    ("arrive", 1, 5, True),
    ("arrive", 6, 24, False),
    ("arrive", 1, 2, False),
    ("fail", 9, 1, False),
    ("finish", 0, 3, False),
]


@example(ONCE_WRONG, 1e6, 1e6, 1)
@settings(max_examples=300, deadline=None)
@given(steps, st.sampled_from([0.0, 0.5, 1e6]), st.sampled_from([30.0, 1e6]), st.sampled_from([1, 3]))
def test_a_call_that_is_passed_over_would_have_been_held(happenings, hold_fraction: float, lapse_s: float, colds: int):
    play(happenings, hold_fraction=hold_fraction, lapse_s=lapse_s, max_cold_prefills=colds, reserve_s=2.0 * lapse_s)


def test_calls_without_room_are_passed_over():
    crowd = [("arrive", run, 20, False) for run in range(8)]
    assert play([*crowd, *[("wait", 0, 1, False)] * 4], hold_fraction=1e6) > 10

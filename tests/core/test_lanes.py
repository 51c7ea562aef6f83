"""The sums a worker's home keeps are what a scan of its lanes would give, whatever happens and whenever time passes."""

from hypothesis import given, settings
from hypothesis import strategies as st

from amf.core.state.lanes import Lanes
from kit import prefix

steps = st.lists(
    st.tuples(
        st.sampled_from(["arrive", "send", "end", "leave", "close", "drop", "time"]),
        st.integers(0, 3),
        st.sampled_from(["u", "v"]),
        st.floats(0, 40),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(steps)
def test_sums_never_drift(happenings: list[tuple[str, int, str, float]]):
    lanes, now_s = Lanes(), 0.0
    lanes.advance(now_s)
    for kind, number, worker, amount in happenings:
        run = f"r{number}"
        match kind:
            case "arrive":
                lanes.arrived(run, "m", still_warm=amount > 10)
            case "send":
                lanes.sent(run, "m", worker, prefix((run, 160)), has_deadline=number % 2 == 0)
            case "end":
                lanes.ended(run, "m", int(amount * 100), amount, amount * 2)
            case "leave":
                lanes.left(run, "m")
            case "close":
                lanes.close(run, ("m",))
            case "drop":
                lanes.drop_worker(worker)
            case _:
                now_s += amount
                lanes.advance(now_s)
        lanes.check_invariants()


def test_a_context_is_protected_then_resident_then_neither():
    lanes = Lanes()
    lanes.advance(0.0)
    lanes.sent("r", "m", "w", prefix(("r", 1_600)), has_deadline=False)
    assert (lanes.home("w").protected_tokens, lanes.home("w").residents) == (0, 1)
    lanes.ended("r", "m", 2_000, protect_s=10.0, reside_s=30.0)
    assert lanes.home("w").protected_tokens == 2_000
    lanes.advance(10.0)
    assert (lanes.home("w").protected_tokens, lanes.home("w").residents) == (0, 1)
    lanes.advance(30.0)
    assert lanes.home("w").residents == 0


def test_a_waiting_call_protects_its_context_for_as_long_as_it_waits():
    lanes = Lanes()
    lanes.advance(0.0)
    lanes.sent("r", "m", "w", prefix(("r", 1_600)), has_deadline=False)
    lanes.ended("r", "m", 2_000, protect_s=1.0, reside_s=1.0)
    lanes.arrived("r", "m", still_warm=True)
    lanes.advance(500.0)
    assert lanes.home("w").waiting_tokens == 2_000
    lanes.left("r", "m")
    assert lanes.home("w").waiting_tokens == 0


def test_a_context_is_never_in_the_way_of_its_own_pipeline():
    """Also when the call that waits came before there was a lane: a sibling of the first."""
    lanes = Lanes()
    lanes.advance(0.0)
    lanes.arrived("r", "m", still_warm=False)
    lanes.sent("r", "m", "w", prefix(("r", 1_600)), has_deadline=True)
    lanes.ended("r", "m", 2_000, protect_s=50.0, reside_s=50.0)
    home = lanes.home("w")
    assert [home.claimed_tokens("r", "m", urgent) for urgent in (False, True)] == [0, 0]
    assert [home.claimed_tokens("other", "m", urgent) for urgent in (False, True)] == [2_000, 2_000]

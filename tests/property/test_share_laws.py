"""Tenants share a pool: within the stated distance, without idleness, and unseen where there is one tenant."""

from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from amf.core.decisions import Dispatch
from amf.core.policy.bundles import policies_named
from amf.core.policy.interface import Placement, PoolView
from amf.core.policy.room import may_start
from amf.core.state.pipelines import CallState
from amf.core.state.shares import Shares
from amf.core.state.workers import Flight
from kit import Room, prefix

FABRIC = policies_named("fabric")
UNSHARED = replace(FABRIC, share=None)
TENANTS = ("a", "b", "c")

bursts = st.sampled_from([0, 5_000, 40_000, 300_000])
weights = st.dictionaries(st.sampled_from(TENANTS), st.sampled_from([0.25, 1.0, 3.0]))
happenings = st.lists(
    st.tuples(
        st.sampled_from(["arrive", "arrive", "first", "finish", "finish", "fail", "wait", "cancel"]),
        st.integers(0, 8),  # the run, and by it the tenant
        st.integers(1, 24),
        st.booleans(),
    ),
    min_size=10,
    max_size=80,
)
Happening = tuple[str, int, int, bool]


def shares_of(room: Room) -> Shares:
    return room.fabric.book.pools["m"].shares


def flights_of(room: Room) -> list[Flight]:
    return [flight for worker in room.fabric.book.workers.values() for flight in worker.flights.values()]


def state_of(room: Room, call_id: str) -> CallState:
    state = room.fabric.book.pipelines.call(call_id)
    assert state is not None
    return state


def work(room: Room, flight: Flight) -> float:
    """What the call counts, worked out from the stated rule."""
    config = room.fabric.config
    tokens = flight.prompt_tokens - flight.hit_tokens + config.fair_output_weight * flight.output_tokens
    return tokens / config.tenant_weights.get(state_of(room, flight.call_id).call.tenant, 1.0)


def end_as_expected(room: Room, flight: Flight) -> list[Dispatch]:
    """The call finishes and was exactly what it counted. Returns what is dispatched then."""
    sizes = {"prompt": flight.prompt_tokens, "cached": flight.hit_tokens, "output": flight.output_tokens}
    decisions = room.finish(flight.call_id, flight.attempt, **sizes)
    return [decision for decision in decisions if isinstance(decision, Dispatch)]


def happen(room: Room, number: int, happening: Happening, tenants: tuple[str, ...]) -> None:
    kind, run, size, urgent = happening
    flights = flights_of(room)
    flight = flights[size % len(flights)] if flights else None
    match kind:
        case "arrive":
            prompt = prefix(("system", 1_024), (f"run{run}", size * 4_096), block=1_024)
            deadline_s = room.now_s + 10.0 * size if urgent else None
            tenant = tenants[run % len(tenants)]
            room.arrive(f"c{number}", f"r{run}", prompt, deadline_s=deadline_s, tenant=tenant)
        case "first" if flight and flight.first_token_s is None:
            room.first_token(flight.call_id, flight.attempt)
        case "finish" if flight:
            end_as_expected(room, flight)
        case "fail" if flight and flight.first_token_s is None:
            room.fail(flight.call_id, flight.attempt)
        case "cancel" if flight:
            room.cancel(flight.call_id)
        case _:
            room.wake(room.now_s + size * 3.0)


class Turns:
    """`route`, with a check of who was asked before: nobody is placed while a tenant that is further behind than the burst
    has a call that was not asked in this look, or could start when it was."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.view: PoolView | None = None
        self.held: set[str] = set()
        self.most = 0.0  # the most one call has counted

    def __call__(self, state: CallState, view: PoolView) -> Placement:
        if view is not self.view:
            self.view, self.held = view, set()
        placement = FABRIC.route(state, view)
        if placement.worker is None:
            self.held.add(state.call.call_id)
            return placement
        served = shares_of(self.room).served()
        limit = served[state.call.tenant] - self.room.fabric.config.fair_burst_tokens
        for other in self.room.fabric.book.pools["m"].waiting.values():
            if served[other.call.tenant] < limit:
                assert other.call.call_id in self.held or not may_start(other, view)
        return placement

    def check_spread(self) -> None:
        self.most = max([self.most, *(work(self.room, flight) for flight in flights_of(self.room))])
        shares, burst = shares_of(self.room), self.room.fabric.config.fair_burst_tokens
        for behind in shares.served().values():
            assert max(shares._served.values()) - behind <= burst + self.most + 1e-6


@settings(max_examples=300, deadline=None)
@given(happenings, bursts, weights, st.sampled_from([1, 3]))
def test_nobody_is_further_ahead_than_burst_and_one_call_and_who_is_goes_last(
    played: list[Happening], burst: int, tenant_weights: dict[str, float], most_running: int
):
    room = Room(
        workers=(),
        fair_burst_tokens=burst,
        tenant_weights=tenant_weights,
        cold_tokens=60_000,
        max_scan_calls=500,
        lapse_s=60.0,
        reserve_s=120.0,
    )
    turns = Turns(room)
    room.fabric.policies = replace(FABRIC, route=turns)
    for name in ("w1", "w2"):
        room.join(name, max_running=most_running, kv_tokens=200_000)
    for number, happening in enumerate(played):
        happen(room, number, happening, TENANTS)
        turns.check_spread()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=2, max_size=9), bursts, weights, st.integers(1, 3))
def test_what_two_backlogged_tenants_are_served_differs_by_no_more_than_burst_and_one_call(
    sizes: list[int], burst: int, tenant_weights: dict[str, float], most_running: int
):
    """One floods with deadlines, the other has none; both always have calls that could start."""
    room = Room(workers=(), fair_burst_tokens=burst, tenant_weights=tenant_weights, start_soon_s=1e6)
    room.join("w1", max_running=most_running)
    numbers = Counter(dict.fromkeys(TENANTS[:2], 0))

    def ask(tenant: str) -> None:
        numbers[tenant] += 1
        call = f"{tenant}{numbers[tenant]}"
        prompt = prefix((call, 1_024 * sizes[numbers.total() % len(sizes)]), block=1_024)
        room.arrive(call, prompt=prompt, tenant=tenant, deadline_s=room.now_s + 5.0 if tenant == "a" else None)

    for _ in range(most_running + 4):
        ask("a")
    for _ in range(4):
        ask("b")
    served, most = dict.fromkeys(TENANTS[:2], 0.0), 0.0
    for _ in range(60):
        for dispatch in end_as_expected(room, flights_of(room)[0]):
            (flight,) = [flight for flight in flights_of(room) if flight.call_id == dispatch.call_id]
            tenant, tokens = dispatch.call_id[0], work(room, flight)
            served[tenant], most = served[tenant] + tokens, max(most, tokens)
            ask(tenant)
        assert abs(served["a"] - served["b"]) <= burst + most + 1e-6


@settings(max_examples=200, deadline=None)
@given(happenings, bursts, weights, st.integers(1, 3))
def test_no_place_stays_empty_while_a_call_could_start(
    played: list[Happening], burst: int, tenant_weights: dict[str, float], most_running: int
):
    """On one worker, where only a free place is wanting."""
    room = Room(workers=(), fair_burst_tokens=burst, tenant_weights=tenant_weights, start_soon_s=1e6, cold_tokens=10**6)
    room.join("w1", max_running=most_running)
    for number, happening in enumerate(played):
        happen(room, number, happening, TENANTS)
        waiting = room.fabric.book.pools["m"].waiting
        assert not waiting or len(flights_of(room)) == most_running


def records(played: list[Happening], tenants: tuple[str, ...], shared: bool, burst: int) -> list[dict[str, object]]:
    room = Room(fair_burst_tokens=burst, cold_tokens=30_000, lapse_s=60.0, reserve_s=1e6)
    room.fabric.policies = FABRIC if shared else UNSHARED
    for number, happening in enumerate(played):
        happen(room, number, happening, tenants)
    return room.records


@settings(max_examples=150, deadline=None)
@given(happenings, bursts)
def test_with_one_tenant_nothing_is_decided_otherwise(played: list[Happening], burst: int):
    assert records(played, ("a",), True, burst) == records(played, ("a",), False, burst)


@settings(max_examples=150, deadline=None)
@given(happenings)
def test_inside_the_burst_urgency_decides_whosever_call_it_is(played: list[Happening]):
    assert records(played, TENANTS, True, 10**12) == records(played, TENANTS, False, 10**12)

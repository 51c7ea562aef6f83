"""Laws of the simulated worker, over random requests, faults and clocks.

A case is a configuration and a script of timed operations. `play` runs it on a worker, looking in at the operations' own
times, at chosen extra times, or at every event; whatever it does, the events must be the same.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amf.core.types import WorkerProfile
from amf.sim.messages import (
    BlocksDropped,
    BlocksEvicted,
    BlocksOffloaded,
    BlocksStored,
    CacheCleared,
    Finished,
    FirstTokenOut,
    Preempted,
    SimEvent,
    SimRequest,
    SimWorkerConfig,
    Started,
)
from amf.sim.worker import QueueFull, RequestTooLarge, SimWorker
from amf.sim.worker_state import Iteration, WorkerStats

# Small numbers with irregular ratios. The second turns compute-bound as KV grows, the third has a knee at its window.
MEMORY_BOUND = WorkerProfile(
    flops_per_token=1.7e9,
    attention_flops=1.1e6,
    window_attention_flops=0.0,
    window_tokens=0,
    flops_per_s=1.03e12,
    bandwidth_bytes_per_s=2.9e11,
    dense_weight_bytes=3.1e9,
    expert_weight_bytes=0.0,
    expert_share=0.0,
    kv_bytes_per_token=7.7e6,
    window_kv_bytes_per_token=0.0,
    iteration_overhead_s=0.00317,
    dollars_per_hour=1.0,
)
TURNING = replace(MEMORY_BOUND, flops_per_token=7.3e9, attention_flops=1.9e8, kv_bytes_per_token=1.3e5)
WINDOWED = replace(TURNING, window_attention_flops=3.7e8, window_tokens=23, window_kv_bytes_per_token=2.3e7)


@dataclass(frozen=True)
class Op:
    gap_s: float
    kind: Literal["submit", "abort", "evict", "clear"]
    number: int  # whose abort, how many tokens to evict
    request: SimRequest


@dataclass(frozen=True)
class Case:
    config: SimWorkerConfig
    ops: tuple[Op, ...]


def chain(labels: Sequence[int]) -> tuple[int, ...]:
    keys, key = [], 0
    for label in labels:
        key = (key * 1_000_003 + label + 1) % (2**61 - 1)
        keys.append(key)
    return tuple(keys)


@st.composite
def requests(draw: st.DrawFn, block: int, capacity: int) -> SimRequest:
    prompt = draw(st.integers(1, min(capacity - 1, 12 * block)))
    output = draw(st.integers(0, min(80, 6 * block)))
    family, fork = draw(st.integers(0, 2)), draw(st.integers(0, 8))
    blocks = (prompt + output) // block
    keys = chain([0 if index < fork else family for index in range(blocks)])
    return SimRequest(
        request_id="", prompt_tokens=prompt, output_tokens=output, block_keys=keys, priority=draw(st.integers(-1, 1))
    )


@st.composite
def cases(draw: st.DrawFn, faults: bool = True) -> Case:
    """One in two has a DRAM tier; then HBM is so small that it is used."""
    block, has_dram = draw(st.sampled_from([1, 4, 16])), draw(st.booleans())
    blocks = draw(st.integers(3, 16 if has_dram else 40))
    config = SimWorkerConfig(
        profile=draw(st.sampled_from([MEMORY_BOUND, TURNING, WINDOWED])),
        kv_tokens=blocks * block + draw(st.integers(0, block - 1)),
        block_tokens=block,
        max_running=draw(st.integers(1, 6)),
        token_budget=draw(st.sampled_from([3, 17, 64, 500])),
        max_waiting=draw(st.sampled_from([None, None, None, 3])),
        scheduling=draw(st.sampled_from(["fcfs", "priority"])),
        prefix_caching=draw(st.sampled_from([True, True, True, False])),
        dram_tokens=draw(st.integers(1, 40)) * block if has_dram else 0,
        dram_bytes_per_s=draw(st.sampled_from([3e7, 1e9, 1e20])),  # from seconds a block to no time at all
    )
    kinds = ["submit", "submit", "submit", "submit", "abort", *(["evict"] if faults else []), "clear"]
    gaps = st.one_of(st.just(0.0), st.floats(0.0, 0.02), st.floats(0.0, 2.0))
    op = st.builds(
        Op,
        gap_s=gaps,
        kind=st.sampled_from(kinds),
        number=st.integers(0, 20),
        request=requests(block, blocks * block),
    )
    ops = draw(st.lists(op, min_size=1, max_size=16))
    return Case(config, tuple(ops))


@dataclass
class Played:
    events: list[SimEvent]
    worker: SimWorker
    submitted: dict[str, tuple[float, SimRequest]]
    aborted: dict[str, float]
    answers: list[object]
    gauges: list[tuple[float, WorkerStats]] = field(default_factory=list)


def play(
    case: Case,
    *,
    looks_s: Sequence[float] = (),
    at_every_event: bool = False,
    stepping: bool = False,
    outcomes_only: bool = False,
) -> Played:
    """Run the script, then until idle. Checks the books at every look and keeps the gauges seen at the given looks."""
    worker = SimWorker(case.config, stepping=stepping, outcomes_only=outcomes_only)
    played = Played([], worker, {}, {}, [])
    pending = sorted(looks_s)
    now_s = 0.0

    def look(at_s: float) -> None:
        played.events += worker.advance(at_s)
        worker.check_invariants()
        if at_s in looks_s:
            played.gauges.append((at_s, worker.stats))

    def wait(until_s: float) -> None:
        while pending and pending[0] <= until_s:
            if pending[0] >= now_s:
                look(pending[0])
            pending.pop(0)
        while at_every_event and (next_s := worker.next_event_s()) is not None and next_s <= until_s:
            look(next_s)

    for index, op in enumerate(case.ops):
        wait(now_s + op.gap_s)
        now_s += op.gap_s
        played.answers.append(perform(played, op, index, now_s))
        worker.check_invariants()
    while worker.next_event_s() is not None:
        at_s = worker.next_event_s() if at_every_event or not pending else pending.pop(0)
        if at_s is not None and at_s >= now_s:
            now_s = at_s
            look(now_s)
    return played


def perform(played: Played, op: Op, index: int, now_s: float) -> object:
    worker = played.worker
    match op.kind:
        case "submit":
            request = replace(op.request, request_id=f"r{index:02}")
            try:
                worker.submit(request, now_s)
            except (QueueFull, RequestTooLarge) as refusal:
                return str(refusal)
            played.submitted[request.request_id] = (now_s, request)
            return None
        case "abort":
            name = f"r{op.number % max(1, index):02}"
            done = worker.abort(name, now_s)
            if done:
                played.aborted[name] = now_s
            return done
        case "evict":
            return worker.evict(op.number, now_s)
        case "clear":
            return worker.clear_cache(now_s)


def target(case: Case, request: SimRequest) -> int:
    capacity = case.config.kv_tokens // case.config.block_tokens * case.config.block_tokens
    return min(request.output_tokens, capacity - request.prompt_tokens)


@settings(deadline=None, max_examples=150)
@given(cases())
def test_every_request_ends_exactly_once_and_gives_back_its_blocks(case: Case) -> None:
    played = play(case)
    ends = Counter(event.request_id for event in played.events if isinstance(event, Finished))
    assert ends + Counter(played.aborted.keys()) == Counter(played.submitted.keys())
    for event in played.events:
        if isinstance(event, Finished):
            request = played.submitted[event.request_id][1]
            assert event.output_tokens == target(case, request)
    generating = [name for name in ends if played.submitted[name][1].output_tokens]
    firsts = Counter(event.request_id for event in played.events if isinstance(event, FirstTokenOut))
    assert set(generating) <= set(firsts) <= {*generating, *played.aborted} and set(firsts.values()) <= {1}
    stats = played.worker.stats
    assert (stats.running, stats.waiting, stats.kv_used_ratio) == (0, 0, 0.0)
    assert (stats.finished, stats.aborted) == (len(ends), len(played.aborted))
    preempted = sum(isinstance(event, Preempted) for event in played.events)
    assert preempted <= stats.preemptions <= preempted + len(played.aborted)
    if not played.aborted:
        assert stats.output_tokens == sum(target(case, request) for _, request in played.submitted.values())
        assert stats.prompt_tokens == sum(request.prompt_tokens for _, request in played.submitted.values())
        assert stats.computed_tokens >= stats.prompt_tokens - stats.cached_tokens
        if not preempted:
            assert stats.computed_tokens == stats.prompt_tokens - stats.cached_tokens


@settings(deadline=None, max_examples=150)
@given(cases(), st.lists(st.floats(0.0, 6.0), max_size=30))
def test_the_clock_s_steps_do_not_matter(case: Case, looks_s: list[float]) -> None:
    coarse, fine, eventful = play(case), play(case, looks_s=looks_s), play(case, at_every_event=True)
    assert fine.events == coarse.events == eventful.events
    assert fine.answers == coarse.answers == eventful.answers
    assert fine.worker.stats == coarse.worker.stats == eventful.worker.stats
    times = [event.at_s for event in coarse.events]
    assert times == sorted(times)


@settings(deadline=None, max_examples=150)
@given(cases())
def test_skipping_equals_stepping(case: Case) -> None:
    skipped, stepped = play(case), play(case, stepping=True)
    assert [replace(event, at_s=0.0) for event in skipped.events] == [
        replace(event, at_s=0.0) for event in stepped.events
    ]
    for one, other in zip(skipped.events, stepped.events, strict=True):
        assert one.at_s == pytest.approx(other.at_s, rel=1e-9, abs=1e-12)
    assert skipped.answers == stepped.answers
    assert skipped.worker.stats == stepped.worker.stats


@settings(deadline=None, max_examples=300)
@given(cases(), st.lists(st.floats(0.0, 6.0), max_size=30))
def test_a_worker_that_keeps_its_blocks_to_itself_does_the_same(case: Case, looks_s: list[float]) -> None:
    told, stepped = play(case, looks_s=looks_s), play(case, looks_s=looks_s, stepping=True)
    silent = play(case, looks_s=looks_s, outcomes_only=True)
    of_blocks = (BlocksStored, BlocksEvicted, BlocksOffloaded, BlocksDropped)
    others = [event for event in stepped.events if not isinstance(event, of_blocks)]
    assert [replace(event, at_s=0.0) for event in silent.events] == [replace(event, at_s=0.0) for event in others]
    for one, other in zip(silent.events, others, strict=True):
        assert one.at_s == pytest.approx(other.at_s, rel=1e-9, abs=1e-12)
    assert silent.answers == told.answers == stepped.answers
    assert silent.gauges == told.gauges == stepped.gauges
    assert silent.worker.stats == stepped.worker.stats
    assert play(case, outcomes_only=True).events == silent.events
    assert play(case, outcomes_only=True, at_every_event=True).events == silent.events


def replay(resident: Counter[int], dram: Counter[int], event: SimEvent) -> None:
    match event:
        case BlocksOffloaded(keys=keys):
            dram.update(keys)
            assert max(dram.values()) == 1, "a block is in DRAM twice"
        case BlocksDropped(keys=keys):
            dram.subtract(keys)
            assert min(dram.values()) == 0, "DRAM dropped what it had not"
        case BlocksStored(keys=keys):
            resident.update(keys)
        case BlocksEvicted(keys=keys):
            resident.subtract(keys)
            assert all(resident[key] >= 0 for key in keys), "evicted what was never stored"
        case CacheCleared():
            resident.clear()
            dram.clear()


@settings(deadline=None, max_examples=150)
@given(cases(faults=False))
def test_the_event_stream_is_the_cache(case: Case) -> None:
    worker, resident, dram = SimWorker(case.config), Counter[int](), Counter[int]()
    played, now_s = Played([], worker, {}, {}, []), 0.0

    def compare(events: list[SimEvent]) -> None:
        for event in events:
            replay(resident, dram, event)
        expected, lower = resident.copy(), dram.copy()
        flight = worker._flight
        if isinstance(flight, Iteration):  # not told yet
            expected.subtract(flight.evicted)
            for live, first, end in flight.stored:
                expected.update(live.request.block_keys[first:end])
            lower.update(flight.offloaded)
            lower.subtract(flight.dropped)
        assert +expected == worker._scheduler.pool.contents()
        assert +lower == worker._scheduler.loads.tier.contents()

    for index, op in enumerate(case.ops):
        now_s += op.gap_s
        compare(worker.advance(now_s))
        perform(played, op, index, now_s)
    while (next_s := worker.next_event_s()) is not None:
        compare(worker.advance(next_s))


@settings(deadline=None, max_examples=150)
@given(cases(faults=False))
def test_a_hit_was_resident_or_filled_in_the_same_iteration(case: Case) -> None:
    played = play(case)
    resident, dram = Counter[int](), Counter[int]()
    block = case.config.block_tokens
    for index, event in enumerate(played.events):
        if isinstance(event, Started):
            request = played.submitted[event.request_id][1]
            assert event.cached_tokens % block == 0
            assert event.cached_tokens <= (request.prompt_tokens - 1) // block * block
            later = [other for other in played.events[index:] if not isinstance(other, Started)]
            together = [other for other in later if other.at_s == later[0].at_s] if later else []
            filling = {key for other in together if isinstance(other, BlocksStored) for key in other.keys}
            hit = request.block_keys[: event.cached_tokens // block]
            assert all(resident[key] > 0 or key in filling for key in hit)  # what is loaded is filled at once
        replay(resident, dram, event)


@settings(deadline=None, max_examples=300)
@given(cases(faults=False))
def test_a_tier_that_is_never_full_is_an_infinite_cache(case: Case) -> None:
    ops = tuple(op for op in case.ops if op.kind != "clear")
    played = play(Case(replace(case.config, prefix_caching=True, dram_tokens=10**6), ops))
    block, stored = case.config.block_tokens, set[int]()
    for event in played.events:
        match event:
            case Started(request_id=name, cached_tokens=cached_tokens):
                request = played.submitted[name][1]
                hit = list(request.block_keys[: (request.prompt_tokens - 1) // block])
                known = next((depth for depth, key in enumerate(hit) if key not in stored), len(hit))
                assert cached_tokens >= known * block
            case BlocksStored(keys=keys):
                stored.update(keys)


@settings(deadline=None, max_examples=150)
@given(cases())
def test_nobody_is_admitted_past_a_request_with_a_better_claim(case: Case) -> None:
    played = play(case)

    def claim(name: str) -> tuple[int, float, str]:
        arrival_s, request = played.submitted[name]
        return (request.priority if case.config.scheduling == "priority" else 0, arrival_s, name)

    waiting = dict(played.submitted)
    for event in played.events:
        if isinstance(event, Started):
            del waiting[event.request_id]
            present = [
                name
                for name, (arrival_s, _) in waiting.items()
                if arrival_s <= event.at_s and played.aborted.get(name, event.at_s + 1) > event.at_s
            ]
            assert all(claim(event.request_id) < claim(name) for name in present)


@settings(deadline=None, max_examples=100)
@given(cases(), st.lists(st.floats(0.0, 4.0), min_size=1, max_size=20))
def test_progress_rises_to_the_reported_output_and_changes_nothing(case: Case, looks_s: list[float]) -> None:
    plain = play(case)
    worker = SimWorker(case.config)
    played, now_s, seen = Played([], worker, {}, {}, []), 0.0, Counter[str]()

    def look(at_s: float) -> None:
        for name in sorted(played.submitted.keys() - played.aborted.keys()):
            if not any(isinstance(event, Finished) and event.request_id == name for event in played.events):
                produced = worker.progress(name, at_s)
                assert seen[name] <= produced <= target(case, played.submitted[name][1])
                seen[name] = produced
        played.events += worker.advance(at_s)
        for event in played.events:
            if isinstance(event, Finished) and event.request_id in seen:
                assert seen[event.request_id] <= event.output_tokens

    for index, op in enumerate(case.ops):
        for at_s in sorted(at_s for at_s in looks_s if now_s < at_s < now_s + op.gap_s):
            look(at_s)
        now_s += op.gap_s
        played.answers.append(perform(played, op, index, now_s))
    while (next_s := worker.next_event_s()) is not None:
        look(max(next_s, now_s))
    assert played.events == plain.events
    assert played.answers == plain.answers

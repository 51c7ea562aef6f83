"""The simulated worker, behaviour by behaviour. Times are checked against sums of `iteration_s` made one by one."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, TypeVar

import pytest

from amf.core.cost import iteration_s
from amf.core.types import WorkerProfile
from amf.sim.messages import (
    BlocksEvicted,
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
from amf.sim.worker_decode import QuietRun
from amf.sim.worker_queue import WaitingQueue
from amf.sim.worker_state import Live

PROFILE = WorkerProfile(
    flops_per_token=1.4e11,
    attention_flops=2.6e6,
    window_attention_flops=0.0,
    window_tokens=0,
    flops_per_s=1e15,
    bandwidth_bytes_per_s=3.84e12,
    dense_weight_bytes=7e10,
    expert_weight_bytes=0.0,
    expert_share=0.0,
    kv_bytes_per_token=163_840.0,
    window_kv_bytes_per_token=0.0,
    iteration_overhead_s=0.003,
    dollars_per_hour=4.0,
)
CONFIG = SimWorkerConfig(profile=PROFILE, kv_tokens=1600, block_tokens=16, token_budget=256, max_running=16)


def request(name: str, prompt: int, output: int, *, keys: int = 0, priority: int = 0) -> SimRequest:
    """Requests share their blocks when they share the `keys` offset."""
    return SimRequest(
        request_id=name,
        prompt_tokens=prompt,
        output_tokens=output,
        block_keys=range(keys, keys + 1000),
        priority=priority,
    )


workers: list[SimWorker] = []


@pytest.fixture(autouse=True)
def _books_balance() -> Iterator[None]:
    workers.clear()
    yield
    for worker in workers:
        worker.check_invariants()


def make(config: SimWorkerConfig = CONFIG) -> SimWorker:
    workers.append(SimWorker(config))
    return workers[-1]


def run_out(worker: SimWorker) -> list[SimEvent]:
    events: list[SimEvent] = []
    while (at_s := worker.next_event_s()) is not None:
        events += worker.advance(at_s)
    assert [event.at_s for event in events] == sorted(event.at_s for event in events)
    return events


E = TypeVar("E", bound=SimEvent)


def of(kind: type[E], events: list[SimEvent]) -> list[E]:
    return [event for event in events if isinstance(event, kind)]


def test_one_request_takes_the_sum_of_its_iterations() -> None:
    worker = make()
    worker.submit(request("a", prompt=600, output=50), 1.0)
    events = run_out(worker)
    prefill = [(256, 0), (256, 256), (88, 512)]
    first_s = 1.0 + sum(iteration_s(PROFILE, [chunk], 0, 0) for chunk in prefill)
    last_s = first_s + sum(iteration_s(PROFILE, [], 1, kv) for kv in range(601, 650))
    assert of(Started, events) == [Started(at_s=1.0, request_id="a", cached_tokens=0)]
    assert of(FirstTokenOut, events)[0].at_s == pytest.approx(first_s, rel=1e-12)
    [end] = of(Finished, events)
    assert (end.at_s, end.output_tokens) == (pytest.approx(last_s, rel=1e-12), 50)
    stats = worker.stats
    assert (stats.prompt_tokens, stats.computed_tokens, stats.output_tokens, stats.finished) == (600, 600, 50, 1)
    assert (stats.running, stats.waiting, stats.kv_used_ratio, stats.cached_free_blocks) == (0, 0, 0.0, 40)


def test_the_last_token_is_never_in_kv_and_stored_blocks_chain() -> None:
    worker = make()
    worker.submit(request("a", prompt=31, output=2), 0.0)  # 32 tokens computed
    stored = of(BlocksStored, run_out(worker))
    assert [(event.first_block, event.keys, event.parent_key) for event in stored] == [(0, (0,), None), (1, (1,), 0)]
    worker.submit(request("b", prompt=31, output=1, keys=500), 9.0)
    assert [event.keys for event in of(BlocksStored, run_out(worker))] == [(500,)]


def test_a_second_turn_finds_prompt_and_output_of_the_first() -> None:
    worker = make()
    worker.submit(request("a", prompt=100, output=61), 0.0)  # 160 tokens computed: ten blocks
    run_out(worker)
    worker.submit(request("b", prompt=200, output=1), 100.0)
    events = run_out(worker)
    assert of(Started, events)[0].cached_tokens == 160
    assert of(Finished, events)[0].cached_tokens == 160
    stats = worker.stats
    assert (stats.cached_tokens, stats.hit_tokens, stats.query_tokens, stats.computed_tokens) == (160, 160, 300, 140)


def test_a_fully_cached_prompt_recomputes_its_last_block_into_a_second_copy() -> None:
    worker = make()
    for name in "ab":
        worker.submit(request(name, prompt=64, output=1), worker.stats.finished * 10.0)
        events = run_out(worker)
    assert of(Started, events)[0].cached_tokens == 48
    assert [event.keys for event in of(BlocksStored, events)] == [(3,)]


def test_twins_in_one_iteration_share_blocks_as_they_are_filled() -> None:
    worker = make()
    for name in "ba":
        worker.submit(request(name, prompt=64, output=1), 0.0)
    started = of(Started, run_out(worker))
    assert [(event.request_id, event.cached_tokens) for event in started] == [("a", 0), ("b", 48)]


def test_an_iteration_stores_blocks_in_order_of_admission() -> None:
    worker = make()
    worker.submit(request("a", prompt=31, output=20), 0.0)
    worker.submit(
        request("b", prompt=500, output=1, keys=500), 0.0
    )  # 225 tokens, then 255 beside the decode that fills
    second = [event for event in run_out(worker) if isinstance(event, BlocksStored)][2:4]
    assert [(event.request_id, event.first_block) for event in second] == [("a", 1), ("b", 14)]
    assert second[0].at_s == second[1].at_s


def test_without_prefix_caching_nothing_is_found_or_told() -> None:
    worker = make(replace(CONFIG, prefix_caching=False))
    for at_s in (0.0, 50.0):
        worker.submit(replace(request("a", prompt=64, output=40), block_keys=()), at_s)
        events = run_out(worker)
        assert of(Started, events)[0].cached_tokens == 0
        assert not of(BlocksStored, events)
    assert (worker.stats.query_tokens, worker.stats.computed_tokens) == (0, 128)


def test_an_encoder_request_ends_with_its_prefill() -> None:
    worker = make()
    worker.submit(request("a", prompt=300, output=0), 0.0)
    events = run_out(worker)
    assert not of(FirstTokenOut, events)
    [end] = of(Finished, events)
    assert end.output_tokens == 0
    assert end.at_s == pytest.approx(sum(iteration_s(PROFILE, [chunk], 0, 0) for chunk in [(256, 0), (44, 256)]))


def test_decodes_go_before_prefills_and_share_the_iteration() -> None:
    worker = make()
    worker.submit(request("a", prompt=16, output=20), 0.0)
    first_s = of(FirstTokenOut, worker.advance(worker.next_event_s() or 0) + worker.advance(0.1))[0].at_s
    worker.submit(request("b", prompt=500, output=1, keys=500), 0.1)
    produced = worker.progress("a", 0.1)
    events = run_out(worker)
    decode = [iteration_s(PROFILE, [], 1, 16 + n) for n in range(1, produced + 2)]
    start_s = first_s + sum(decode[:produced])
    chunks = [
        iteration_s(PROFILE, [(255, 0)], 1, 16 + produced + 1),
        iteration_s(PROFILE, [(245, 255)], 1, 18 + produced),
    ]
    assert of(Started, events)[0].at_s == pytest.approx(start_s)
    assert of(FirstTokenOut, events)[0].at_s == pytest.approx(start_s + sum(chunks))


def test_progress_counts_tokens_inside_a_skipped_stretch() -> None:
    worker = make()
    worker.submit(request("a", prompt=16, output=40), 0.0)
    first_s = iteration_s(PROFILE, [(16, 0)], 0, 0)
    ends_s = [first_s]
    for kv in range(17, 56):
        ends_s.append(ends_s[-1] + iteration_s(PROFILE, [], 1, kv))
    assert worker.progress("a", first_s * 0.5) == 0
    for count, end_s in enumerate(ends_s, start=1):
        assert worker.progress("a", end_s - 1e-6) == count - 1
        assert worker.progress("a", end_s + 1e-6) == count
    assert worker.stats.output_tokens == 40
    worker.advance(ends_s[-1] + 1.0)
    with pytest.raises(KeyError):
        worker.progress("a", ends_s[-1] + 1.0)


def test_a_submit_in_a_stretch_starts_at_the_next_boundary_and_sees_blocks_done_by_then() -> None:
    worker = make()
    worker.submit(request("a", prompt=16, output=60), 0.0)
    worker.advance(0.5)
    produced = worker.progress("a", 0.5)
    worker.submit(request("b", prompt=200, output=1), 0.5)
    [start] = of(Started, worker.advance(0.6))
    assert 0.5 < start.at_s < 0.5 + iteration_s(PROFILE, [], 1, 76)
    assert start.cached_tokens == (16 + produced) // 16 * 16


@pytest.mark.parametrize(("scheduling", "order"), [("fcfs", "cabdz"), ("priority", "cdabz")])
def test_order_of_admission(scheduling: Literal["fcfs", "priority"], order: str) -> None:
    worker = make(replace(CONFIG, scheduling=scheduling, max_running=1))
    worker.submit(request("c", prompt=10, output=2), 0.0)
    assert len(worker.advance(0.001)) == 1
    for name, priority in (("b", 0), ("a", 0)):
        worker.submit(request(name, prompt=10, output=2, priority=priority), 0.001)
    for name, priority in (("d", -1), ("z", 9)):
        worker.submit(request(name, prompt=10, output=2, priority=priority), 0.002)
    assert "c" + "".join(event.request_id for event in of(Started, run_out(worker))) == order


def test_the_head_of_the_queue_is_not_passed_and_needs_room_for_its_whole_prompt() -> None:
    worker = make(replace(CONFIG, kv_tokens=320))
    worker.submit(request("a", prompt=160, output=20), 0.0)
    worker.submit(request("big", prompt=300, output=1, keys=400), 0.0)
    worker.submit(request("small", prompt=10, output=1, keys=800), 0.0)
    events = run_out(worker)
    assert [event.request_id for event in of(Started, events)] == ["a", "big", "small"]
    assert of(Started, events)[1].at_s == of(Finished, events)[0].at_s
    assert worker.stats.preemptions == 0


def test_want_of_memory_preempts_the_most_recently_admitted() -> None:
    worker = make(replace(CONFIG, kv_tokens=160))  # ten blocks
    for name, keys in (("a", 0), ("b", 500)):
        worker.submit(request(name, prompt=64, output=60, keys=keys), 0.0)
    events = run_out(worker)
    assert [event.request_id for event in of(Preempted, events)] == ["b"]
    assert [(event.request_id, event.output_tokens) for event in of(Finished, events)] == [("a", 60), ("b", 60)]
    assert len(of(FirstTokenOut, events)) == len(of(Started, events)) == 2
    assert of(BlocksEvicted, events)
    assert worker.stats.preemptions == 1 and worker.stats.computed_tokens > 128


def test_priority_preempts_the_least_urgent() -> None:
    worker = make(replace(CONFIG, kv_tokens=160, scheduling="priority"))
    worker.submit(request("late", prompt=64, output=60, priority=5), 0.0)
    worker.advance(0.1)
    worker.submit(request("soon", prompt=64, output=60, keys=500, priority=1), 0.1)
    events = run_out(worker)
    assert [event.request_id for event in of(Preempted, events)] == ["late"]
    assert [event.request_id for event in of(Finished, events)] == ["soon", "late"]


def test_who_preempts_itself_stalls_all_behind_it_for_an_iteration() -> None:
    second = replace(PROFILE, flops_per_token=0.0, attention_flops=0.0, dense_weight_bytes=0.0, kv_bytes_per_token=0.0)
    profile = replace(second, iteration_overhead_s=1.0)
    worker = make(replace(CONFIG, profile=profile, kv_tokens=112, scheduling="priority"))
    worker.submit(request("first", prompt=10, output=6, priority=0), 0.0)
    worker.submit(request("low", prompt=31, output=40, keys=200, priority=9), 0.0)
    worker.advance(0.5)
    for name, keys in (("b", 400), ("c", 600)):  # seven blocks are taken when "low" opens one, in iteration 2
        worker.submit(request(name, prompt=31, output=3, keys=keys, priority=1), 0.5)
    seen = []
    for end_s in (1.0, 2.0, 3.0, 4.0):
        worker.advance(end_s)
        seen.append([worker.progress(name, end_s) for name in ("first", "low", "b", "c")])
    assert seen == [[1, 1, 0, 0], [2, 2, 1, 1], [3, 2, 1, 1], [4, 2, 2, 2]]
    ends = {event.request_id: event.at_s for event in of(Finished, run_out(worker))}
    assert (ends["first"], ends["b"], ends["c"]) == (6.0, 5.0, 5.0) and ends["low"] > 6.0


@pytest.mark.parametrize(("by_priority", "order"), [(False, "cbad"), (True, "abcd")])
def test_the_preempted_return_to_the_front_the_last_one_foremost(by_priority: bool, order: str) -> None:
    queue = WaitingQueue(by_priority)
    lives = {
        name: Live(request(name, prompt=1, output=1), arrival_s=index, target=1) for index, name in enumerate("abcd")
    }
    for name in "da":
        queue.push(lives[name])
    for name in "bc":
        queue.push_front(lives[name])
    left = ""
    while queue:
        head = queue.head()
        left += head.request_id
        queue.remove(head)
    assert left == order


def test_nobody_is_admitted_in_an_iteration_that_preempts() -> None:
    worker = make(replace(CONFIG, kv_tokens=160, scheduling="priority", max_running=2))
    for name, priority in (("a", 0), ("b", 5)):
        worker.submit(request(name, prompt=64, output=60, keys=500 * priority, priority=priority), 0.0)
    worker.advance(0.1)
    worker.submit(request("c", prompt=10, output=1, keys=9000, priority=1), 0.1)
    events = run_out(worker)
    assert of(Preempted, events)[0].request_id == "b"
    assert of(Started, events)[0].at_s == of(Preempted, events)[0].at_s  # the end of that iteration


def test_a_block_filled_by_another_can_make_room_for_the_head_of_the_queue() -> None:
    worker = make(replace(CONFIG, kv_tokens=96))
    worker.submit(request("a", prompt=16, output=64), 0.0)
    worker.advance(0.1)
    worker.submit(request("b", prompt=90, output=1), 0.1)  # all six blocks, of which "a" holds only full ones by then
    events = run_out(worker)
    [start] = of(Started, events)
    fills = of(BlocksStored, events)
    assert start.at_s < fills[0].at_s < of(Finished, events)[-1].at_s
    assert start.cached_tokens == 32


def test_a_sequence_ends_where_the_whole_memory_does() -> None:
    worker = make(replace(CONFIG, kv_tokens=64))
    worker.submit(request("a", prompt=50, output=1000), 0.0)
    [end] = of(Finished, run_out(worker))
    assert end.output_tokens == 14


def test_refusals_say_the_numbers_and_change_nothing() -> None:
    worker = make(replace(CONFIG, kv_tokens=64, max_waiting=1))
    with pytest.raises(RequestTooLarge, match="needs 65 KV tokens at least, the worker has 64"):
        worker.submit(request("a", prompt=64, output=5), 0.0)
    with pytest.raises(ValueError, match="at least 1 token"):
        worker.submit(request("a", prompt=0, output=5), 0.0)
    with pytest.raises(ValueError, match="1 block keys for 2 full blocks of 16 tokens"):
        worker.submit(replace(request("a", prompt=30, output=5), block_keys=(1,)), 0.0)
    assert worker.next_event_s() is None
    worker.submit(request("a", prompt=64, output=0), 0.0)
    with pytest.raises(ValueError, match="in use"):
        worker.submit(request("a", prompt=6, output=0), 0.0)
    with pytest.raises(QueueFull, match="1 requests are waiting, the limit is 1"):
        worker.submit(request("b", prompt=6, output=0), 0.0)
    assert [event.request_id for event in of(Finished, run_out(worker))] == ["a"]
    with pytest.raises(ValueError, match="backwards"):
        worker.advance(0.0)
    with pytest.raises(ValueError, match="token_budget must be at least 1"):
        SimWorker(replace(CONFIG, token_budget=0))
    with pytest.raises(ValueError, match="at least one block of 16 tokens"):
        SimWorker(replace(CONFIG, kv_tokens=15))


def test_abort_frees_blocks_at_the_boundary_and_leaves_the_rest_alone() -> None:
    worker = make(replace(CONFIG, max_running=1))
    worker.submit(request("a", prompt=64, output=500), 0.0)
    worker.submit(request("b", prompt=64, output=5), 0.0)
    worker.advance(0.2)
    assert worker.abort("b", 0.2) and not worker.abort("b", 0.2)
    assert worker.stats.waiting == 0
    assert worker.abort("a", 0.21)
    assert worker.stats.kv_used_ratio > 0
    assert run_out(worker) == [] and worker.next_event_s() is None
    assert (worker.stats.aborted, worker.stats.finished, worker.stats.kv_used_ratio) == (2, 0, 0.0)
    assert not worker.abort("nobody", 9.0)
    worker.submit(request("c", prompt=64, output=1), 9.0)
    assert of(Started, run_out(worker))[0].cached_tokens == 48


def test_what_was_spent_on_requests_is_what_the_worker_did() -> None:
    """At any time, inside prefills and stretches too: computed without what the cache gave, and produced."""
    for outcomes_only in (False, True):
        worker = SimWorker(CONFIG, outcomes_only=outcomes_only)
        worker.submit(request("a", prompt=700, output=80), 0.0)
        worker.submit(request("b", prompt=400, output=60, keys=5_000), 0.0)
        seen = set()
        for step in range(1, 160):
            at_s = 0.005 * step
            if step == 80:
                worker.submit(request("c", prompt=90, output=40), at_s)  # finds the beginning of a
            worker.advance(at_s)
            if worker.stats.finished:
                break
            spent = {name: worker.spent(name, at_s) for name in "abc"}
            assert sum(spent.values()) == worker.stats.computed_tokens + worker.stats.output_tokens
            seen |= set(spent.values())
        assert len(seen) > 60 and worker.stats.cached_tokens == 80
        assert worker.spent("nobody", 9.0) == 0


def test_abort_in_the_last_iteration_leaves_no_end() -> None:
    worker = make()
    worker.submit(request("a", prompt=64, output=1), 0.0)
    worker.advance(0.001)
    assert worker.abort("a", 0.001)
    events = run_out(worker)
    assert not of(Finished, events) and not of(FirstTokenOut, events)
    assert of(BlocksStored, events)[0].keys == (0, 1, 2, 3)


def test_clear_cache_waits_for_blocks_in_use() -> None:
    worker = make()
    worker.submit(request("a", prompt=64, output=3), 0.0)
    worker.advance(0.01)
    assert not worker.clear_cache(0.01)
    run_out(worker)
    assert worker.clear_cache(5.0)
    assert worker.next_event_s() == 5.0
    assert worker.advance(5.0) == [CacheCleared(at_s=5.0)]
    worker.submit(request("b", prompt=64, output=1), 6.0)
    assert of(Started, run_out(worker))[0].cached_tokens == 0


def test_evict_lies_about_what_is_resident() -> None:
    worker = make()
    worker.submit(request("a", prompt=160, output=1), 0.0)
    run_out(worker)
    assert worker.evict(40, 5.0) == 48
    assert worker.advance(5.0) == []
    worker.submit(request("b", prompt=161, output=1), 6.0)
    assert of(Started, run_out(worker))[0].cached_tokens == 112
    assert worker.evict(10**6, 99.0) > 0 and worker.evict(16, 99.0) == 0


def test_a_slow_worker_takes_proportionally_longer_from_the_next_iteration() -> None:
    worker = make()
    worker.speed = 3.0
    worker.submit(request("a", prompt=64, output=1), 0.0)
    assert run_out(worker)[-1].at_s == pytest.approx(3.0 * iteration_s(PROFILE, [(64, 0)], 0, 0))
    with pytest.raises(ValueError, match="positive"):
        worker.speed = 0.0


def test_slowing_down_in_a_stretch() -> None:
    worker = make(replace(CONFIG, block_tokens=64))
    worker.submit(request("a", prompt=10, output=40), 0.0)
    worker.advance(0.2)
    done = worker.progress("a", 0.2)
    worker.speed = 2.0
    steps = [iteration_s(PROFILE, [], 1, 10 + n) for n in range(1, 40)]
    expected_s = iteration_s(PROFILE, [(10, 0)], 0, 0) + sum(steps[:done]) + 2.0 * sum(steps[done:])
    assert of(Finished, run_out(worker))[0].at_s == pytest.approx(expected_s, rel=1e-12)


def test_a_quiet_run_sums_pieces_and_cuts_at_a_boundary() -> None:
    def seconds(ahead: int) -> float:
        return max(1.0, 0.5 + 0.03 * ahead) + min(0.4, 0.01 * ahead)

    run = QuietRun(10.0, 62, seconds)
    for count in range(63):
        assert run.elapsed(count) == pytest.approx(sum(map(seconds, range(count))), rel=1e-12)
        assert run.done(10.0 + run.elapsed(count)) == count
    assert run.done(math.inf) == 62
    run.cut(10.0 + run.elapsed(7))
    assert run.count == 7
    run.cut(10.0 + run.elapsed(3) + 1e-9)
    assert (run.count, run.end_s) == (4, 10.0 + run.elapsed(4))

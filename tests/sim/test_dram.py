"""The DRAM tier: what comes, what is found, what is forgotten first; and a worker that loads from it."""

import math
from dataclasses import replace
from typing import TypeVar

import pytest
from test_worker import CONFIG, PROFILE, request

from amf.core.cost import iteration_s
from amf.sim.blocks import BlockPool, BlockTable
from amf.sim.dram import DramTier
from amf.sim.messages import BlocksDropped, BlocksOffloaded, Finished, FirstTokenOut, SimEvent, SimRequest, Started
from amf.sim.worker import SimWorker

E = TypeVar("E", bound=SimEvent)
BLOCK_BYTES = PROFILE.kv_bytes_per_token * 16
# 100 blocks of HBM, 200 of DRAM, a block a second.
TIERED = replace(CONFIG, dram_tokens=3200, dram_bytes_per_s=BLOCK_BYTES)


def run_out(worker: SimWorker) -> list[SimEvent]:
    events: list[SimEvent] = []
    while (next_s := worker.next_event_s()) is not None:
        events += worker.advance(next_s)
        worker.check_invariants()
    return events


def of(kind: type[E], events: list[SimEvent]) -> list[E]:
    return [event for event in events if isinstance(event, kind)]


def filled(config: object = TIERED) -> SimWorker:
    """A worker whose DRAM has all but the first 16 blocks of the 64 of sequence 0; HBM has those and sequence 1000."""
    worker = SimWorker(replace(TIERED) if config is TIERED else config)  # type: ignore[arg-type]
    for name, keys, blocks in (("old", 0, 64), ("new", 1000, 84)):
        worker.submit(request(name, prompt=16 * blocks, output=1, keys=keys), max(0.0, worker.stats.finished * 100.0))
        run_out(worker)
    return worker


def test_the_first_to_come_is_the_first_forgotten_and_a_piece_from_its_deep_end() -> None:
    tier = DramTier(4)
    tier.put([3, 2], 0)
    tier.put([12, 11, 10], 0)
    assert tier.drain() == ([3, 2, 12, 11, 10], [3])
    assert [tier.match(keys, 0, len(keys)) for keys in ([2, 3], [10, 11, 12], [11, 12])] == [1, 3, 0]
    tier.put([20], 0)
    assert tier.match([2, 3], 0, 2) == 0
    tier.check()


def test_what_is_loaded_leaves_and_the_deeper_rest_stays_where_it_was() -> None:
    tier = DramTier(8)
    tier.put([5, 4, 3, 2], 0)
    tier.put([1], 0)
    assert tier.match([1, 2, 3, 9], 0, 4) == 3
    tier.load([1, 2, 3, 9], 0, 3)
    assert (tier.used, sorted(tier.contents())) == (2, [4, 5])
    assert tier.match([1, 2, 3, 4, 5], 3, 5) == 5
    tier.check()


def test_a_stale_block_is_not_found_and_takes_its_place_until_it_is_the_oldest() -> None:
    tier = DramTier(4)
    tier.put([3, 2, 1], 1)
    assert (tier.match([1, 2, 3], 0, 3), tier.match([1, 2, 3], 1, 3), tier.used) == (0, 3, 3)
    tier.spoil([1, 2, 3], 0, 2)
    assert (tier.match([1, 2, 3], 1, 3), tier.match([1, 2, 3], 2, 3)) == (1, 3)
    tier.put([9, 8, 7], 0)
    assert (tier.used, sorted(tier.contents())) == (4, [7, 8, 9])
    tier.check()
    tier.put([6, 5], 0)
    assert sorted(tier.contents()) == [5, 6, 7, 8]
    tier.check()


def test_a_tier_smaller_than_what_comes_keeps_the_shallow_end() -> None:
    tier = DramTier(2)
    tier.put([4, 3, 2, 1], 0)
    assert sorted(tier.contents()) == [1, 2]
    tier.clear()
    assert (tier.used, tier.contents()) == (0, {})
    with pytest.raises(ValueError, match="0 blocks or more"):
        DramTier(-1)


def test_the_pool_hands_down_what_it_forgets_to_make_room_and_no_more() -> None:
    tier = DramTier(8)
    pool = BlockPool(3, tier)
    tables = [BlockTable([1]), BlockTable([1, 2])]
    for table in tables:
        pool.take(table, len(table.keys))
        pool.store(table, len(table.keys))
    pool.release(tables[0])
    pool.take(BlockTable(), 1)
    assert (tier.used, tier.contents()) == (1, {})  # HBM has the other copy
    pool.release(tables[1])
    pool.lose(1)
    assert tier.contents() == {}  # a fault forgets 2 for good
    pool.take(BlockTable(), 2)
    assert tier.contents() == {1: 1}


def test_what_hbm_has_forgotten_is_loaded_back_at_the_speed_of_the_link() -> None:
    worker = filled()
    worker.submit(request("again", prompt=64 * 16 + 10, output=1), 1000.0)
    events = run_out(worker)
    [start] = of(Started, events)
    assert (start.at_s, start.cached_tokens) == (1000.0, 64 * 16)
    assert of(FirstTokenOut, events)[0].at_s == pytest.approx(1048.0 + iteration_s(PROFILE, [(10, 64 * 16)], 0, 0))
    assert len(of(BlocksDropped, events)[0].keys) == 48
    assert sum(len(event.keys) for event in of(BlocksOffloaded, events)) == 49  # sequence 1000 made room


def test_loads_come_one_after_another_while_others_compute() -> None:
    worker = filled()
    worker.submit(request("a", prompt=40 * 16 + 1, output=1), 1000.0)
    worker.submit(request("b", prompt=16 * 16, output=40, keys=5000), 1000.0)
    worker.submit(request("c", prompt=30 * 16 + 1, output=1), 1000.0)
    events = run_out(worker)
    firsts = {event.request_id: event.at_s for event in of(FirstTokenOut, events)}
    ends = {event.request_id: event.at_s for event in of(Finished, events)}
    assert firsts["b"] < ends["b"] < 1005.0
    assert 1024.0 < firsts["a"] < 1024.1
    assert 1024.0 < firsts["c"] < 1024.1  # it found what "a" was loading, and waited for it


def test_a_load_has_its_memory_from_the_start() -> None:
    worker = filled()
    worker.submit(request("a", prompt=64 * 16 + 10, output=1), 1000.0)
    worker.advance(1001.0)
    assert worker.stats.kv_used_ratio == 0.65
    worker.submit(request("b", prompt=40 * 16, output=1, keys=5000), 1001.0)
    events = run_out(worker)
    assert [event.request_id for event in of(FirstTokenOut, events)] == ["a", "b"]
    assert of(Started, events)[-1].at_s > 1048.0


def test_a_load_goes_on_when_its_request_is_gone() -> None:
    worker = filled()
    worker.submit(request("a", prompt=64 * 16 + 10, output=1), 1000.0)
    worker.advance(1010.0)
    assert worker.abort("a", 1010.0)
    worker.submit(request("b", prompt=64 * 16 + 10, output=1), 1020.0)
    events = run_out(worker)
    assert of(Started, events)[0].cached_tokens == 64 * 16
    assert 1048.0 < of(FirstTokenOut, events)[0].at_s < 1048.1


def test_without_a_tier_nothing_is_told_of_one_and_nothing_is_found() -> None:
    worker = filled(CONFIG)
    worker.submit(request("again", prompt=64 * 16 + 10, output=1), 1000.0)
    events = run_out(worker)
    assert of(Started, events)[0].cached_tokens == 16 * 16
    assert not of(BlocksOffloaded, events) and not of(BlocksDropped, events)


def test_clearing_the_cache_clears_both_tiers() -> None:
    worker = filled()
    assert worker.clear_cache(1000.0)
    worker.submit(request("again", prompt=64 * 16 + 10, output=1), 1000.0)
    assert of(Started, run_out(worker))[0].cached_tokens == 0


@pytest.mark.parametrize("wrong", [{"dram_tokens": -1}, {"dram_bytes_per_s": 0.0}, {"dram_bytes_per_s": math.nan}])
def test_a_tier_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="dram_tokens must not be negative, and dram_bytes_per_s above 0"):
        SimWorker(replace(TIERED, **wrong))  # type: ignore[arg-type]


def test_a_request_of_one_block_has_nothing_to_load() -> None:
    worker = filled()
    worker.submit(SimRequest(request_id="one", prompt_tokens=3, output_tokens=1, block_keys=()), 1000.0)
    assert of(Started, run_out(worker))[0].cached_tokens == 0

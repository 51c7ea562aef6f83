"""The block pool: sharing, reuse in vLLM's order, duplicate copies, faults."""

import pytest

from amf.sim.blocks import BlockPool, Blocks


def fill(pool: BlockPool, keys: list[int], blank: int = 0) -> Blocks:
    """A sequence of `keys` full blocks and `blank` partial ones."""
    blocks, _ = pool.allocate(len(keys) + blank)
    pool.store(blocks[: len(keys)], keys)
    return blocks


def taken(pool: BlockPool, count: int) -> tuple[list[int], list[int]]:
    blocks, evicted = pool.allocate(count)
    return blocks.tolist(), evicted


def found(pool: BlockPool, keys: list[int]) -> list[int]:
    return pool.match(keys).tolist()


def drain(pool: BlockPool) -> list[int]:
    """Keys in the order in which they are forgotten."""
    return pool.allocate(pool.free)[1]


def test_a_sequence_is_forgotten_from_its_end() -> None:
    pool = BlockPool(4)
    pool.release(fill(pool, [1, 2, 3]))
    assert found(pool, [1, 2, 3, 4]) != []
    assert [len(pool.match([1, 2, 3])), pool.cached_free, pool.free] == [3, 3, 4]
    assert drain(pool) == [3, 2, 1]
    assert found(pool, [1]) == []


def test_blocks_without_a_key_are_reused_first() -> None:
    pool = BlockPool(4)
    first = fill(pool, [1, 2], blank=2)
    pool.release(first)
    blocks, evicted = taken(pool, 2)
    assert evicted == []
    assert blocks == [first[3], first[2]]  # the tail first
    assert taken(pool, 1) == ([first[1]], [2])


def test_least_recently_released_goes_first_and_a_hit_saves_a_block() -> None:
    pool = BlockPool(4)
    old, new = fill(pool, [1, 2]), fill(pool, [3, 4])
    pool.release(old)
    pool.release(new)
    hit = pool.match([1, 2])
    assert hit.tolist() == old.tolist() and pool.count_free(hit) == 2
    pool.hold(hit)
    assert (pool.count_free(hit), pool.free, pool.used) == (0, 2, 2)
    pool.release(hit)
    pool.check([])
    assert drain(pool) == [4, 3, 2, 1]


def test_a_shared_block_is_free_only_when_all_let_go() -> None:
    pool = BlockPool(3)
    mine = fill(pool, [1, 2])
    theirs = pool.match([1])
    pool.hold(theirs)
    pool.check([mine, theirs])
    pool.release(mine)
    assert (pool.used, pool.cached_free) == (1, 1)
    pool.release(theirs)
    assert (pool.used, pool.cached_free) == (0, 2)
    pool.check([])


def test_match_stops_at_the_first_gap() -> None:
    pool = BlockPool(4)
    pool.release(fill(pool, [1, 3]))
    assert len(pool.match([1, 2, 3])) == 1
    assert found(pool, []) == []


def test_a_key_is_findable_while_a_copy_is_left() -> None:
    pool = BlockPool(3)
    first, second, third = (fill(pool, [7]) for _ in range(3))
    assert found(pool, [7]) == first.tolist() and pool.contents() == {7: 3}
    pool.release(first)
    assert taken(pool, 1) == (first.tolist(), [7])  # reused as a blank block of somebody else
    assert 7 in pool and found(pool, [7]) == second.tolist()
    pool.release(third)
    assert taken(pool, 1) == (third.tolist(), [7])
    assert found(pool, [7]) == second.tolist() and pool.contents() == {7: 1}
    pool.check([first, second, third])
    pool.release(second)
    pool.allocate(1)
    assert 7 not in pool


def test_a_remembered_sequence_is_found_as_far_as_it_still_holds() -> None:
    pool = BlockPool(6)
    old = fill(pool, [1, 2, 3, 4])
    pool.remember(old, [1, 2, 3, 4])
    pool.release(old)
    assert found(pool, [1, 2, 3, 4, 5]) == old.tolist()
    assert pool.match([1, 2, 3, 4], 2).tolist() == old[:2].tolist()
    assert found(pool, [1, 2, 9, 4]) == old[:2].tolist()
    pool.allocate(2)
    assert pool.lose(1) == 1  # the block of key 4
    assert found(pool, [1, 2, 3, 4]) == old[:3].tolist()
    again = fill(pool, [4])
    assert found(pool, [1, 2, 3, 4]) == [*old[:3].tolist(), *again.tolist()]


def test_a_remembered_copy_gives_way_to_the_first() -> None:
    pool = BlockPool(4)
    first, copy = fill(pool, [1]), fill(pool, [1, 2])
    pool.remember(copy, [1, 2])
    assert found(pool, [1, 2]) == [first[0], copy[1]]
    pool.release(first)
    assert taken(pool, 2)[1] == [1]
    assert found(pool, [1, 2]) == copy.tolist()


def test_the_order_of_release_survives_many_rounds() -> None:
    pool = BlockPool(5)
    sequences = [fill(pool, [10 * each, 10 * each + 1]) for each in (1, 2)]
    for blocks in sequences:
        pool.release(blocks)
    for turn in range(40):
        hit = pool.match([10 * (turn % 2 + 1), 10 * (turn % 2 + 1) + 1])
        pool.hold(hit)
        pool.release(hit)
        pool.check([])
    assert drain(pool) == [11, 10, 21, 20]


def test_losing_blocks_is_silent_and_in_order() -> None:
    pool = BlockPool(4)
    pool.release(fill(pool, [1, 2, 3]))
    assert pool.lose(2) == 2
    assert [key in pool for key in (1, 2, 3)] == [True, False, False]
    pool.check([])
    assert drain(pool) == [1]
    assert pool.lose(5) == 0


def test_clear_only_when_nothing_is_held() -> None:
    pool = BlockPool(4)
    held = fill(pool, [1])
    pool.release(fill(pool, [2]))
    assert not pool.clear() and 2 in pool
    pool.release(held)
    assert pool.clear()
    pool.check([])
    assert (pool.contents(), pool.free, pool.cached_free) == ({}, 4, 0)


def test_too_much_is_refused_and_changes_nothing() -> None:
    pool = BlockPool(2)
    held, _ = pool.allocate(1)
    with pytest.raises(ValueError, match="asked for 2 blocks, only 1 of 2 are free"):
        pool.allocate(2)
    pool.check([held])
    with pytest.raises(ValueError, match="at least one block"):
        BlockPool(0)


def test_the_check_sees_a_lost_block() -> None:
    pool = BlockPool(2)
    pool.allocate(1)
    with pytest.raises(AssertionError, match="holders differ"):
        pool.check([])

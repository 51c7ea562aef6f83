"""The block pool: sharing, reuse in vLLM's order, duplicate copies, faults."""

import pytest

from amf.sim.blocks import BlockPool, BlockTable, count_free, depth_of


def fill(pool: BlockPool, keys: list[int], blank: int = 0) -> BlockTable:
    """A sequence of `keys` full blocks and `blank` partial ones."""
    table = BlockTable(keys)
    pool.take(table, len(keys) + blank)
    pool.store(table, len(keys))
    return table


def hit(pool: BlockPool, keys: list[int]) -> BlockTable:
    return pool.hold(pool.match(keys), keys)


def found(pool: BlockPool, keys: list[int]) -> int:
    return depth_of(pool.match(keys))


def drain(pool: BlockPool) -> list[int]:
    """Keys in the order in which they are forgotten."""
    return pool.take(BlockTable(), pool.free)


def test_a_sequence_is_forgotten_from_its_end() -> None:
    pool = BlockPool(4)
    pool.release(fill(pool, [1, 2, 3]))
    assert found(pool, [1, 2, 3, 4]) == 3
    assert [found(pool, [1, 2, 3]), pool.cached_free, pool.free] == [3, 3, 4]
    assert drain(pool) == [3, 2, 1]
    assert found(pool, [1]) == 0


def test_blocks_without_a_key_are_reused_first() -> None:
    pool = BlockPool(4)
    pool.release(fill(pool, [1, 2], blank=2))
    table = BlockTable()
    assert pool.take(table, 2) == []
    assert pool.take(table, 1) == [2]
    pool.check([table])


def test_least_recently_released_goes_first_and_a_hit_saves_a_block() -> None:
    pool = BlockPool(4)
    old, new = fill(pool, [1, 2]), fill(pool, [3, 4])
    pool.release(old)
    pool.release(new)
    assert count_free(pool.match([1, 2])) == 2
    table = hit(pool, [1, 2])
    assert (count_free(pool.match([1, 2])), pool.free, pool.used) == (0, 2, 2)
    pool.release(table)
    pool.check([])
    assert drain(pool) == [4, 3, 2, 1]


def test_a_shared_block_is_free_only_when_all_let_go() -> None:
    pool = BlockPool(3)
    mine = fill(pool, [1, 2])
    theirs = hit(pool, [1])
    pool.check([mine, theirs])
    pool.release(mine)
    assert (pool.used, pool.cached_free) == (1, 1)
    pool.release(theirs)
    assert (pool.used, pool.cached_free) == (0, 2)
    pool.check([])


def test_match_goes_on_where_a_sequence_branches_off_midway() -> None:
    pool = BlockPool(8)
    pool.release(fill(pool, [1, 2, 3, 4]))
    branch = hit(pool, [1, 2, 8, 9])
    pool.take(branch, 2)
    pool.store(branch, 4)
    pool.check([branch])
    assert [found(pool, keys) for keys in ([1, 2, 3, 4], [1, 2, 8, 9], [1, 2, 8, 7], [1, 7], [])] == [4, 4, 3, 1, 0]
    assert depth_of(pool.match([1, 2, 8, 9], 3)) == 3


def test_what_a_holder_has_is_cut_where_another_leaves_it() -> None:
    pool = BlockPool(8)
    mine = fill(pool, [1, 2, 3, 4, 5])
    others = [hit(pool, keys) for keys in ([1, 2, 3], [1, 2, 3, 4], [1])]
    pool.check([mine, *others])
    assert [(stretch.lo, stretch.hi) for stretch in mine.stretches()] == [(0, 1), (1, 3), (3, 4), (4, 5)]
    pool.release(mine)
    pool.check(others)
    assert pool.cached_free == 1
    for table in others:
        pool.release(table)
    assert drain(pool) == [5, 4, 3, 2, 1]


def test_what_is_released_together_is_one_stretch() -> None:
    pool = BlockPool(8)
    mine = fill(pool, [1, 2, 3, 4])
    pool.release(hit(pool, [1, 2]))
    assert len(pool.match([1, 2, 3, 4])) == 2
    pool.release(mine)
    assert len(pool.match([1, 2, 3, 4])) == 1
    pool.check([])


def test_a_key_is_findable_while_a_copy_is_left() -> None:
    pool = BlockPool(3)
    first, second, third = (fill(pool, [7]) for _ in range(3))
    assert pool.contents() == {7: 3}
    others = BlockTable()
    pool.release(first)
    assert pool.take(others, 1) == [7]
    assert found(pool, [7]) == 1 and count_free(pool.match([7])) == 0
    pool.release(third)
    assert pool.take(others, 1) == [7]
    assert found(pool, [7]) == 1 and pool.contents() == {7: 1}
    pool.check([second, others])
    pool.release(second)
    assert pool.take(others, 1) == [7]
    assert found(pool, [7]) == 0


def test_a_copy_gives_way_to_the_first_and_takes_its_place() -> None:
    pool = BlockPool(4)
    first, copy = fill(pool, [1]), fill(pool, [1, 2])
    assert count_free(pool.match([1, 2])) == 0
    pool.release(copy)
    assert count_free(pool.match([1, 2])) == 1  # that of key 2; the first copy of 1 is still held
    pool.release(first)
    assert pool.take(BlockTable(), 3) == [2, 1]
    assert found(pool, [1, 2]) == 1


def test_the_order_of_release_survives_many_rounds() -> None:
    pool = BlockPool(5)
    tables = [fill(pool, [10 * each, 10 * each + 1]) for each in (1, 2)]
    for table in tables:
        pool.release(table)
    for turn in range(40):
        pool.release(hit(pool, [10 * (turn % 2 + 1), 10 * (turn % 2 + 1) + 1]))
        pool.check([])
    assert drain(pool) == [11, 10, 21, 20]


def test_losing_blocks_is_silent_and_in_order() -> None:
    pool = BlockPool(4)
    pool.release(fill(pool, [1, 2, 3]))
    assert pool.lose(2) == 2
    assert found(pool, [1, 2, 3]) == 1
    pool.check([])
    assert drain(pool) == [1]
    assert pool.lose(5) == 0


def test_clear_only_when_nothing_is_held() -> None:
    pool = BlockPool(4)
    held = fill(pool, [1])
    pool.release(fill(pool, [2]))
    assert not pool.clear() and found(pool, [2]) == 1
    pool.release(held)
    assert pool.clear()
    pool.check([])
    assert (pool.contents(), pool.free, pool.cached_free) == ({}, 4, 0)


def test_a_small_part_of_a_long_sequence_keeps_only_its_own_keys() -> None:
    pool = BlockPool(100)
    keys = list(range(100))
    pool.release(hit(pool, keys[:90]))
    long = fill(pool, keys)
    other = hit(pool, keys[:90])
    pool.release(long)
    (_, (tail, _)) = pool.match(keys)
    assert (list(tail.keys), tail.base) == (keys[90:], 90)
    pool.release(other)
    assert found(pool, keys) == 100


def test_too_much_is_refused_and_changes_nothing() -> None:
    pool = BlockPool(2)
    held = BlockTable()
    pool.take(held, 1)
    with pytest.raises(ValueError, match="asked for 2 blocks, only 1 of 2 are free"):
        pool.take(held, 2)
    pool.check([held])
    with pytest.raises(ValueError, match="at least one block"):
        BlockPool(0)


def test_the_check_sees_a_lost_block() -> None:
    pool = BlockPool(2)
    pool.take(BlockTable(), 1)
    with pytest.raises(AssertionError, match="blocks are lost"):
        pool.check([])


def test_the_check_sees_a_holder_that_is_no_table() -> None:
    pool = BlockPool(2)
    fill(pool, [1])
    with pytest.raises(AssertionError, match="holders differ"):
        pool.check([])

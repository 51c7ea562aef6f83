"""Prompts of parts with keys become prompts of blocks: same lengths, same sharing but for less than a block."""

from hypothesis import given
from hypothesis import strategies as st

from amf.sim.workload.keyed import KeyedBlocks

# A prompt is a path in a tree: each step chooses one of three parts, whose key names the whole path so far.
PATHS = st.lists(st.lists(st.integers(0, 2), max_size=8), min_size=1, max_size=8)


def ids(runs: tuple[tuple[int, int], ...]) -> list[int]:
    return [block for first, count in runs for block in range(first, first + count)]


def common(one: list[int], other: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def keys_of(path: list[int]) -> list[int]:
    return [hash(tuple(path[: depth + 1])) for depth in range(len(path))]


def size_of(key: int) -> int:
    return 1 + key % 90


@given(PATHS, st.lists(st.integers(0, 70), min_size=8, max_size=8), st.sampled_from([1, 16, 64]))
def test_exact_parts_share_what_they_shared(paths: list[list[int]], rests: list[int], block: int):
    book = KeyedBlocks(block)
    seen: list[tuple[list[int], list[int]]] = []
    for path, rest in zip(paths, rests, strict=False):
        keys = keys_of(path)
        sizes = [float(size_of(key)) for key in keys]
        total = int(sum(sizes)) + rest
        runs, tail = book.prompt(keys, sizes, total, exact=True)
        blocks = ids(runs)
        assert len(blocks) * block + tail == total and 0 <= tail < block
        assert len(set(blocks)) == len(blocks)
        for other_keys, other_blocks in seen:
            same = common(keys, other_keys)
            assert common(blocks, other_blocks) == sum(size_of(key) for key in keys[:same]) // block
        seen.append((keys, blocks))


@given(PATHS, st.lists(st.integers(1, 900), min_size=8, max_size=8), st.sampled_from([16, 64]))
def test_estimated_parts_keep_the_prompts_true_length(paths: list[list[int]], totals: list[int], block: int):
    """However wrong the estimates are."""
    book = KeyedBlocks(block)
    for path, total in zip(paths, totals, strict=False):
        keys = keys_of(path)
        runs, tail = book.prompt(keys, [*(float(size_of(key)) for key in keys), 5.0], total)
        blocks = ids(runs)
        assert len(blocks) * block + tail == total and 0 <= tail < block
        assert len(set(blocks)) == len(blocks)


def test_a_conversation_that_grows_keeps_its_blocks_while_the_estimate_drifts():
    """The gateway learns bytes per token as it goes: the second prompt's estimates differ, its kept part does not."""
    book = KeyedBlocks(16)
    first, _ = book.prompt([1, 2], [100.0, 100.0, 0.0], 320)
    second, tail = book.prompt([1, 2, 3, 4], [160.0, 160.0, 80.0, 80.0, 0.0], 480)
    assert ids(second)[:20] == ids(first) and len(ids(second)) == 30 and tail == 0
    shorter, _ = book.prompt([1, 2, 3, 5], [1.0, 1.0, 1.0, 1.0], 400)
    assert common(ids(shorter), ids(second)) == 25, "as far as the key of the third part reaches, and no block beyond"

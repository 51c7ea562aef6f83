"""Block keys and the translation of an engine's block names into them."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from amf.engines.blockindex import BlockIndex
from amf.engines.engine import BlocksRemoved, BlocksStored
from amf.engines.keys import root_key, text_keys, token_keys

BLOCK = 4
TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=60)


def test_the_formula() -> None:
    first = xxh3_64_intdigest(bytes([1, 0, 0, 0, 255, 255, 255, 255]), 0)
    second = xxh3_64_intdigest(bytes([3, 0, 0, 0, 4, 1, 0, 0]), first)
    assert token_keys([1, 2**32 - 1, 3, 260, 5], 2) == (first, second)
    assert root_key("") == 0
    assert root_key("tenant") == xxh3_64_intdigest(b"tenant")
    assert text_keys(b"abcdefg", 3, 9) == (a := xxh3_64_intdigest(b"abc", 9), xxh3_64_intdigest(b"def", a))


@given(TOKENS, TOKENS, st.integers(1, 8))
def test_keys_are_equal_as_far_as_prompts_are(left: list[int], right: list[int], block_tokens: int) -> None:
    shared = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    left_keys, right_keys = token_keys(left, block_tokens), token_keys(right, block_tokens)
    assert len(left_keys) == len(left) // block_tokens
    same = [a == b for a, b in zip(left_keys, right_keys, strict=False)]
    assert same == [i < shared // block_tokens for i in range(len(same))]


@given(TOKENS, st.integers(0, 15))
def test_a_chain_may_be_computed_in_pieces(tokens: list[int], blocks: int) -> None:
    whole, cut = token_keys(tokens, BLOCK), min(blocks * BLOCK, len(tokens) // BLOCK * BLOCK)
    head = token_keys(tokens[:cut], BLOCK)
    assert head + token_keys(tokens[cut:], BLOCK, head[-1] if head else 0) == whole
    assert token_keys(np.array(tokens, dtype=np.int64), BLOCK) == token_keys(tuple(tokens), BLOCK) == whole


@pytest.mark.parametrize("tokens", [[-1], [2**32], ["a"], [1.5], [None], [[1]]])
def test_what_is_no_token_is_refused(tokens: list) -> None:
    with pytest.raises(ValueError, match="token ids"):
        token_keys(tokens, 1)


def test_an_empty_block_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        token_keys([1], 0)


def stored(
    hashes: list[int | bytes], tokens: list[int], parent: int | bytes | None = None, salt: str = ""
) -> BlocksStored:
    return BlocksStored(
        block_hashes=tuple(hashes), parent_hash=parent, token_ids=tuple(tokens), block_tokens=BLOCK, cache_salt=salt
    )


def removed(*hashes: int | bytes) -> BlocksRemoved:
    return BlocksRemoved(block_hashes=hashes)


def test_blocks_get_the_keys_of_the_prompt_they_come_from() -> None:
    index, tokens = BlockIndex(), list(range(16))
    keys = token_keys(tokens, BLOCK)
    assert index.stored(stored([71, b"h2"], tokens[:8])) == keys[:2]
    assert index.stored(stored([73, 74], tokens[8:], b"h2")) == keys[2:]
    assert index.removed(removed(74, 71)) == (keys[3], keys[0])
    assert index.stored(stored([75], tokens[:4], salt="t")) == token_keys(tokens[:4], BLOCK, root_key("t"))


def test_copies_are_removed_one_by_one() -> None:
    index = BlockIndex()
    (key,) = index.stored(stored([1], [1, 2, 3, 4]))
    assert index.stored(stored([1], [1, 2, 3, 4])) == (key,)
    assert index.removed(removed(1)) == (key,)
    assert index.removed(removed(1)) == (key,)
    assert (index.removed(removed(1)), index.unknown, len(index)) == ((), 1, 0)


def test_what_cannot_be_named_is_left_out_and_counted() -> None:
    index = BlockIndex()
    assert index.stored(stored([1, 2], list(range(8)), parent=99)) == ()
    assert index.stored(stored([3, 4], list(range(7)))) == ()
    assert index.stored(stored([5], [-1, 0, 0, 0])) == ()
    assert index.stored(BlocksStored(block_hashes=(6,), parent_hash=None, token_ids=(), block_tokens=4)) == ()
    assert (index.orphans, len(index)) == (6, 0)
    assert index.removed(removed(1, 2)) == ()


def test_an_offload_tier_names_blocks_by_hash_alone() -> None:
    index = BlockIndex()
    keys = index.stored(stored([1, 2], list(range(8))))
    offloaded = BlocksStored(block_hashes=(2,), parent_hash=None, token_ids=(), block_tokens=0, medium="CPU")
    assert index.stored(offloaded) == keys[1:]
    assert index.removed(removed(2)) == index.removed(BlocksRemoved(block_hashes=(2,), medium="CPU")) == keys[1:]


def test_the_index_is_bounded_and_can_be_cleared() -> None:
    index = BlockIndex(max_blocks=2)
    assert index.stored(stored([1, 2, 3], list(range(12)))) == ()
    assert len(index.stored(stored([1, 2], list(range(8))))) == 2
    assert index.stored(stored([9], [9, 9, 9, 9])) == ()
    index.clear()
    assert len(index) == 0
    assert index.stored(stored([2], [4, 5, 6, 7], parent=1)) == ()


@given(st.integers(0, 2**32), st.integers(1, 120))
def test_the_index_follows_an_engine(seed: int, steps: int) -> None:
    """A model engine stores and removes copies of blocks, under hashes of its own; what the index says adds up to it."""
    rng, index = random.Random(seed), BlockIndex()
    chains = [[rng.randrange(3) for _ in range(4 * BLOCK)] for _ in range(4)]
    held: list[tuple[int, int]] = []  # (engine hash, our key), one entry a copy
    believed: list[int] = []
    for _ in range(steps):
        if held and rng.random() < 0.4:
            engine_hash, _ = held.pop(rng.randrange(len(held)))
            for key in index.removed(removed(engine_hash)):
                believed.remove(key)
            continue
        chain, start = rng.choice(chains), rng.randrange(4)
        hashes = [hash(tuple(chain[: BLOCK * (i + 1)])) for i in range(4)]
        if start and hashes[start - 1] not in [engine_hash for engine_hash, _ in held]:
            continue
        end = rng.randint(start + 1, 4)
        parent = hashes[start - 1] if start else None
        believed += index.stored(stored(hashes[start:end], chain[start * BLOCK : end * BLOCK], parent))
        held += list(zip(hashes[start:end], token_keys(chain, BLOCK)[start:end], strict=True))
    assert sorted(believed) == sorted(key for _, key in held)
    assert (index.orphans, index.unknown) == (0, 0)

"""Engines that hold a block once or not at all, whatever they tell twice; and what the block index makes of it."""

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from amf.engines.blockindex import BlockIndex
from amf.engines.engine import BlocksRemoved, BlocksStored, CacheCleared
from amf.engines.held import Event, HeldBlocks
from amf.engines.keys import token_keys

BLOCK = 2
CLEARED = CacheCleared(reason="the engine reset its cache")


def stored(hashes: list[int], parent: int | None = None, medium: str = "GPU") -> BlocksStored:
    """Blocks whose tokens are their hash, twice."""
    tokens = tuple(name for name in hashes for _ in range(BLOCK))
    return BlocksStored(
        block_hashes=tuple(hashes), parent_hash=parent, token_ids=tokens, block_tokens=BLOCK, medium=medium
    )


def removed(*hashes: int, medium: str = "GPU") -> BlocksRemoved:
    return BlocksRemoved(block_hashes=hashes, medium=medium)


def news(held: HeldBlocks, *events: Event) -> list[Event]:
    return [each for event in events for each in held.news(event)]


def test_what_is_new_passes_as_it_is() -> None:
    events = [stored([1, 2]), stored([3], 2), removed(3), stored([3], 2), removed(1, 2, 3)]
    held = HeldBlocks()
    assert news(held, *events) == events
    assert len(held) == 0


def test_what_is_told_again_is_cut_out_and_the_rest_keeps_its_chain() -> None:
    held = HeldBlocks()
    assert news(held, stored([2, 4]), stored([1, 2, 3, 4, 5, 5], 9)) == [
        stored([2, 4]),
        stored([1], 9),
        stored([3], 2),
        stored([5], 4),
    ]
    assert news(held, stored([1, 2]), removed(7), removed(2, 7, 2)) == [removed(2)]


def test_each_medium_is_a_set_of_its_own() -> None:
    on_host = stored([1], medium="CPU_PINNED")
    events = [stored([1]), on_host, removed(1), removed(1, medium="CPU_PINNED")]
    assert news(HeldBlocks(), *events) == events


def test_after_a_reset_everything_is_news() -> None:
    assert news(HeldBlocks(), stored([1]), CLEARED, stored([1]), stored([1])) == [stored([1]), CLEARED, stored([1])]


def test_one_ranks_reset_takes_back_what_that_rank_held() -> None:
    """Also what its engine tells when it begins, when there is nothing to take back."""
    on_host = stored([1], medium="CPU_PINNED")
    held = HeldBlocks(alone=False)
    assert news(held, CLEARED, stored([1, 2]), on_host, removed(2), CLEARED, CLEARED, stored([1])) == [
        stored([1, 2]),
        on_host,
        removed(2),
        removed(1),
        removed(1, medium="CPU_PINNED"),
        stored([1]),
    ]


def test_it_is_bounded() -> None:
    held = HeldBlocks(max_blocks=2)
    assert news(held, stored([1, 2, 3]), stored([1, 2]), stored([3], 2), removed(3)) == [stored([1, 2])]


@given(st.integers(0, 2**32), st.integers(1, 150))
def test_belief_follows_a_radix_cache_that_repeats_itself(seed: int, steps: int) -> None:
    """A model of SGLang's cache: chains share their beginnings, leaves go first, each medium is a set; now and then it tells of
    blocks that are there. Belief is kept as the fabric keeps it, by counting copies."""
    rng, held, index = random.Random(seed), HeldBlocks(), BlockIndex()
    chains = [[rng.randrange(3) for _ in range(5 * BLOCK)] for _ in range(4)]
    names = [[hash(tuple(chain[: BLOCK * (i + 1)])) - 2**61 for i in range(5)] for chain in chains]
    truth: dict[tuple[str, int], int] = {}  # (medium, engine hash) -> our key
    believed: Counter[tuple[str, int]] = Counter()

    def tell(event: Event) -> None:
        for each in held.news(event):
            if isinstance(each, BlocksStored):
                believed.update((each.medium, key) for key in index.stored(each))
            elif isinstance(each, BlocksRemoved):
                believed.subtract((each.medium, key) for key in index.removed(each))

    for _ in range(steps):
        which, medium = rng.randrange(4), rng.choice(["GPU", "CPU_PINNED"])
        chain, own = chains[which], names[which]
        there = next((i for i in range(5) if (medium, own[i]) not in truth), 5)
        if there and rng.random() < 0.4:
            children = {row[there] for row in names if there < 5 and row[there - 1] == own[there - 1]}
            if any((medium, child) in truth for child in children):
                continue
            del truth[medium, own[there - 1]]
            tell(removed(own[there - 1], medium=medium))
            continue
        first = rng.randrange(there + 1) if rng.random() < 0.5 else there
        end = rng.randint(first, 5)
        if first == end:
            continue
        for name, key in zip(own[first:end], token_keys(chain, BLOCK)[first:end], strict=True):
            truth[medium, name] = key
        parent = own[first - 1] if first else None
        tokens = tuple(chain[first * BLOCK : end * BLOCK])
        tell(
            BlocksStored(
                block_hashes=tuple(own[first:end]),
                parent_hash=parent,
                token_ids=tokens,
                block_tokens=BLOCK,
                medium=medium,
            )
        )
    assert +believed == Counter((medium, key) for (medium, _), key in truth.items())
    assert (index.orphans, index.unknown) == (0, 0)

"""Text keys put into an engine's blocks by which request stored them: hand-made cases, and a law over random engines."""

from hypothesis import given, settings
from hypothesis import strategies as st

from amf.engines.attribution import Attribution
from amf.engines.engine import BlocksRemoved, BlocksStored

BLOCK = 16


def store(seen: Attribution, tag: str, parent: str | None, *names: str, medium: str = "GPU") -> tuple[int, ...]:
    return seen.stored(
        BlocksStored(
            block_hashes=tuple(name.encode() for name in names),
            parent_hash=None if parent is None else parent.encode(),
            token_ids=(0,) * BLOCK * len(names),
            block_tokens=BLOCK,
            medium=medium,
            session_id=tag,
        )
    )


def remove(seen: Attribution, *names: str, medium: str = "GPU") -> tuple[int, ...]:
    return seen.removed(BlocksRemoved(block_hashes=tuple(name.encode() for name in names), medium=medium))


def test_keys_are_resident_from_the_answer_until_one_of_their_blocks_goes():
    seen = Attribution()
    seen.sent("r1", (11, 12, 13), (20, 40, 60), 60)
    assert store(seen, "r1", None, "a", "b", "c", "d") == (), "the prompt's length is not known yet"
    assert seen.answered("r1", 60) == (11, 12, 13), "60 tokens end in block d"
    assert remove(seen, "d") == (13,)
    assert set(remove(seen, "b")) == {11, 12}, "tokens 0 to 20 and 20 to 40 both lie in it in part"
    seen.check_invariants()


def test_the_estimate_is_scaled_to_what_the_engine_counted():
    seen = Attribution()
    seen.sent("r1", (11, 12), (10, 20), 20)  # half of what it really is
    store(seen, "r1", None, "a", "b", "c")
    assert seen.answered("r1", 40) == (11, 12)
    assert remove(seen, "c") == (12,), "from token 20 to 40: blocks b and c"
    assert remove(seen, "a") == (11,)


def test_what_ends_behind_the_last_stored_block_is_not_resident():
    seen = Attribution()
    seen.sent("r1", (11, 12), (30, 50), 50)
    store(seen, "r1", None, "a", "b")
    assert seen.answered("r1", 50) == (11,), "50 tokens are three blocks and a bit"


def test_a_prefix_that_others_stored_is_found_through_the_chain():
    seen = Attribution()
    seen.sent("r1", (1, 2), (16, 32), 32)
    store(seen, "r1", None, "a", "b")
    assert seen.answered("r1", 32) == (1, 2)
    remove(seen, "b")
    seen.sent("r2", (1, 3), (16, 32), 32)
    store(seen, "r2", "a", "x")
    assert seen.answered("r2", 32) == (3,), "1 is resident already"
    assert remove(seen, "a") == (1,)


def test_a_prefix_stored_by_a_call_that_nobody_followed_counts_too():
    seen = Attribution()
    store(seen, "warm-up of somebody", None, "a", "b")
    seen.sent("r1", (1, 2, 3), (16, 32, 48), 48)
    store(seen, "r1", "b", "c")
    assert seen.answered("r1", 48) == (1, 2, 3)


def test_the_last_event_may_come_after_the_answer():
    seen = Attribution()
    seen.sent("r1", (1, 2), (16, 32), 32)
    store(seen, "r1", None, "a")
    assert seen.answered("r1", 32) == (1,)
    assert store(seen, "r1", "a", "b") == (2,)


def test_blocks_without_a_known_parent_name_nothing():
    seen = Attribution()
    seen.sent("r1", (1,), (16,), 16)
    assert store(seen, "r1", "unknown", "a") == () and seen.orphans == 1
    assert seen.answered("r1", 16) == ()


def test_copies_are_counted_and_lower_tiers_are_not_looked_at():
    seen = Attribution()
    seen.sent("r1", (1,), (16,), 16)
    store(seen, "r1", None, "a")
    store(seen, "r2", None, "a")
    store(seen, "r1", None, "a", medium="CPU")
    assert seen.answered("r1", 16) == (1,)
    assert remove(seen, "a", medium="CPU") == () and remove(seen, "a") == () and remove(seen, "a") == (1,)


def test_after_a_reset_nothing_is_known_and_calls_in_flight_go_on():
    seen = Attribution()
    seen.sent("r1", (1,), (16,), 16)
    store(seen, "r1", None, "a")
    seen.clear()
    assert seen.answered("r1", 16) == () and len(seen) == 0
    seen.sent("r2", (1,), (16,), 16)
    store(seen, "r2", None, "a")
    assert seen.answered("r2", 16) == (1,)


def test_calls_and_blocks_are_bounded():
    seen = Attribution(max_blocks=3, max_calls=2)
    for number in range(5):
        seen.sent(f"r{number}", (number,), (16,), 16)
        store(seen, f"r{number}", None, f"a{number}")
    assert len(seen) == 3 and seen.orphans == 2
    assert seen.answered("r0", 16) == () and seen.answered("r4", 16) == ()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_what_is_called_resident_lies_in_blocks_that_the_engine_has(data):
    """An engine with a radix of blocks, prompts that share prefixes, removals from the leaves: stored and evicted keys agree
    with the blocks at every step, and with exact lengths a key is resident only if all its tokens are."""
    seen, engine, resident = Attribution(), {}, set()  # engine: chain of text -> still there

    def tell(keys: tuple[int, ...], gone: bool) -> None:
        for key in keys:
            assert (key in resident) is gone, "told twice"
        resident.symmetric_difference_update(keys)

    for number in range(data.draw(st.integers(1, 12))):
        if engine and data.draw(st.booleans()):
            leaves = [chain for chain in engine if not any(other[:-1] == chain for other in engine)]
            chain = data.draw(st.sampled_from(leaves))
            del engine[chain]
            tell(remove(seen, repr(chain)), gone=True)
            continue
        text = tuple(data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=6)))  # a block each
        seen.sent(
            f"r{number}",
            [hash(text[: i + 1]) for i in range(len(text))],
            [BLOCK * (i + 1) for i in range(len(text))],
            BLOCK * len(text),
        )
        fresh = [text[: i + 1] for i in range(len(text)) if text[: i + 1] not in engine]
        if fresh:
            engine.update(dict.fromkeys(fresh))
            parent = fresh[0][:-1]
            tell(store(seen, f"r{number}", repr(parent) if parent else None, *map(repr, fresh)), gone=False)
        tell(seen.answered(f"r{number}", BLOCK * len(text)), gone=False)
        seen.check_invariants()
    assert resident <= {hash(chain) for chain in engine}

"""TensorRT-LLM's KV events as the adapter reads them, alone and against a model of the engine's tree."""

import json
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from trtllm_fakes import FakeTrtllm, block, created, removed, stored, updated

from amf.engines import trtevents
from amf.engines.blockindex import BlockIndex
from amf.engines.engine import BlocksRemoved, BlocksStored, CacheCleared
from amf.engines.keys import token_keys
from amf.engines.kvwire import KvEvent
from amf.engines.trtevents import EventReader
from amf.engines.trtpoll import events_of

BLOCK = 4
RESTARTED = CacheCleared(reason="the engine restarted")


def read(reader: EventReader, events: Sequence[dict[str, Any]]) -> list[KvEvent]:
    raws = events_of(json.dumps(events).encode())
    assert raws is not None
    return list(reader.read(raws))


def told(*data: dict[str, Any], **more: Any) -> list[KvEvent]:
    """What a new reader says of these events of a new engine."""
    fake = FakeTrtllm()
    fake.emit(*data, **more)
    return read(EventReader(), fake.drain())


def seen(*hashes: int, tokens: Sequence[int], parent: int | None = None, medium: str = "GPU") -> BlocksStored:
    return BlocksStored(block_hashes=hashes, parent_hash=parent, token_ids=tuple(tokens), block_tokens=2, medium=medium)


def moved(block_hash: int, before: str, after: str) -> list[KvEvent]:
    here = BlocksStored(block_hashes=(block_hash,), parent_hash=None, token_ids=(), block_tokens=0, medium=after)
    return [here, BlocksRemoved(block_hashes=(block_hash,), medium=before)]


def test_blocks_are_stored_in_chains_and_removed() -> None:
    assert told(
        created(100, 0),
        stored(block(11, [1, 2]), block(12, [3, 4])),
        stored(block(13, [5, 6]), parent=12),
        removed(13, 12),
    ) == [
        seen(11, 12, tokens=[1, 2, 3, 4]),
        seen(13, tokens=[5, 6], parent=12),
        BlocksRemoved(block_hashes=(13, 12)),
    ]


def test_a_block_moves_between_two_levels_and_is_removed_where_it_lies() -> None:
    assert told(
        stored(block(11, [1, 2]), block(12, [3, 4])),
        updated(11, 0, 1),
        updated(12, 0, 1),
        updated(12, 1, 0),
        removed(11, 12),
    ) == [
        seen(11, 12, tokens=[1, 2, 3, 4]),
        *moved(11, "GPU", "CPU"),
        *moved(12, "GPU", "CPU"),
        *moved(12, "CPU", "GPU"),
        BlocksRemoved(block_hashes=(11,), medium="CPU"),
        BlocksRemoved(block_hashes=(12,)),
    ]


def test_a_chain_over_two_levels_is_told_in_pieces() -> None:
    assert told(stored(block(1, [1, 1]), block(2, [2, 2], 1), block(3, [3, 3], 1), block(4, [4, 4], 5))) == [
        seen(1, tokens=[1, 1]),
        seen(2, 3, tokens=[2, 2, 3, 3], parent=1, medium="CPU"),
        seen(4, tokens=[4, 4], parent=3, medium="DISK"),
    ]


def test_what_is_told_twice_counts_once() -> None:
    assert told(
        stored(block(1, [1, 1])),
        stored(block(1, [1, 1]), block(2, [2, 2])),
        stored(block(2, [2, 2], 1), parent=1),
        removed(2, 2),
        removed(9),
        updated(9, 0, 1),
        updated(1, 0, 0),
    ) == [
        seen(1, tokens=[1, 1]),
        seen(2, tokens=[2, 2], parent=1),
        *moved(2, "GPU", "CPU"),
        BlocksRemoved(block_hashes=(2,), medium="CPU"),
    ]


def test_each_rank_has_a_tree_and_numbers_of_its_own() -> None:
    fake, reader = FakeTrtllm(), EventReader()
    for rank in (0, 1):
        fake.emit(created(100, 50), stored(block(1, [1, 1])), rank=rank)
    fake.emit(removed(1), rank=1)
    assert read(reader, fake.drain()) == [
        seen(1, tokens=[1, 1]),
        seen(1, tokens=[1, 1]),
        BlocksRemoved(block_hashes=(1,)),
    ]
    assert reader.level_blocks == (200, 100)


@pytest.mark.parametrize("lost", [1, 3])
def test_a_gap_forgets_what_was_held(lost: int) -> None:
    fake, reader = FakeTrtllm(), EventReader()
    fake.emit(created(100), stored(block(1, [1, 1])))
    read(reader, fake.drain())
    fake.emit(*[removed(1)] * lost)
    fake.drain()
    fake.emit(updated(1, 0, 1), stored(block(1, [1, 1])))
    assert read(reader, fake.drain()) == [CacheCleared(reason=f"events lost: {lost}"), seen(1, tokens=[1, 1])]


def test_a_gap_of_one_rank_leaves_the_numbers_of_the_others() -> None:
    fake, reader = FakeTrtllm(), EventReader()
    for rank in (0, 1):
        fake.emit(stored(block(1, [1, 1])), rank=rank)
    read(reader, fake.drain())
    fake.emit(removed(1), rank=0)
    fake.drain()
    fake.emit(removed(2), rank=0)
    fake.emit(removed(1), rank=1)
    assert read(reader, fake.drain()) == [CacheCleared(reason="events lost: 1")]


@pytest.mark.parametrize("lives", [[3], [1, 1]])
def test_a_restart_forgets_all_and_is_told_once(lives: list[int]) -> None:
    """`lives`: the number of events of each rank's second life."""
    fake, reader = FakeTrtllm(), EventReader()
    for rank in range(len(lives)):
        fake.emit(created(100), stored(block(1, [1, 1])), window=4096, rank=rank)
    read(reader, fake.drain())
    fake.restart()
    for rank, count in enumerate(lives):
        fake.emit(*[created(70), stored(block(2, [2, 2])), removed(2)][:count], window=1024, rank=rank)
    expected = [RESTARTED, seen(2, tokens=[2, 2]), BlocksRemoved(block_hashes=(2,))]
    assert read(reader, fake.drain()) == expected[: max(1, max(lives))]
    assert reader.level_blocks == (70 * len(lives),)


def test_a_life_of_one_event_can_be_followed_by_another() -> None:
    fake, reader = FakeTrtllm(), EventReader()
    for _ in range(2):
        fake.restart()
        fake.emit(stored(block(1, [1, 1])))
        events = read(reader, fake.drain())
    assert events == [RESTARTED, seen(1, tokens=[1, 1])]


def test_the_first_number_met_is_accepted() -> None:
    fake, reader = FakeTrtllm(), EventReader()
    fake.emit(created(100), stored(block(1, [1, 1])))
    fake.drain()
    fake.emit(stored(block(2, [2, 2]), parent=1))
    assert read(reader, fake.drain()) == [seen(2, tokens=[2, 2], parent=1)]


def test_a_cache_made_anew_in_the_same_life_is_empty() -> None:
    events = told(created(5), stored(block(1, [1, 1])), created(100), removed(1))
    assert events == [seen(1, tokens=[1, 1]), CacheCleared(reason="the engine made its cache anew")]


def test_only_the_largest_window_counts() -> None:
    fake, reader = FakeTrtllm(), EventReader()
    fake.emit(created(900), window=1024)
    fake.emit(created(100), window=32768)
    fake.emit(stored(block(1, [1, 1])), removed(1), window=1024)
    fake.emit(stored(block(2, [2, 2])), window=32768)
    fake.emit(removed(2), window=1024)
    assert read(reader, fake.drain()) == [seen(2, tokens=[2, 2])]
    assert reader.level_blocks == (100,)


def test_a_larger_window_unmasks_the_one_before() -> None:
    fake, reader = FakeTrtllm(), EventReader()
    fake.emit(stored(block(1, [1, 1])), window=1024)
    fake.emit(stored(block(1, [1, 1])), window=32768)
    fake.emit(removed(1), window=1024)
    sliding = CacheCleared(reason="the blocks told so far were those of a sliding window")
    assert read(reader, fake.drain()) == [seen(1, tokens=[1, 1]), sliding, seen(1, tokens=[1, 1])]


def test_window_and_rank_are_found_within_the_data_too() -> None:
    wide, narrow = {"window_size": 4096, "attention_dp_rank": 1}, {"window_size": 64, "attention_dp_rank": 1}
    assert told(stored(block(1, [1, 1])) | wide, stored(block(2, [2, 2])) | narrow) == [seen(1, tokens=[1, 1])]


@pytest.mark.parametrize(
    "odd",
    [
        block(2, [2]),
        block(2, []),
        block(2, [2, 2], mm_keys=[{"hash": "ab", "start_offset": 0}]),
        block(2, [2, 2], lora_id=7),
        block(2, [2, 2], cache_salt="t"),
        block(2, [2, 2]) | {"tokens": [{"token_id": 2}, {"token_id": 2, "token_extra_id": 3}]},
    ],
)
def test_what_tokens_do_not_name_is_left_out_with_all_that_follows(odd: dict[str, Any]) -> None:
    chain = stored(block(1, [1, 1]), odd, block(3, [3, 3]))
    assert told(chain, removed(3, 2, 1)) == [seen(1, tokens=[1, 1]), BlocksRemoved(block_hashes=(1,))]


def test_a_root_without_a_hash_is_a_root() -> None:
    assert told(stored(block(1, [1, 1]), parent=0)) == [seen(1, tokens=[1, 1])]


@pytest.mark.parametrize(
    "broken",
    [
        {"type": "removed"},
        {"type": "removed", "block_hashes": ["x"]},
        {"type": "updated", "cache_level": {"new_value": 1}},
        {"type": "updated", "block_hash": 1, "cache_level": {"new_value": None}},
    ],
)
def test_a_loss_that_cannot_be_read_forgets_what_is_held_and_no_more(broken: dict[str, Any]) -> None:
    lost = CacheCleared(reason="events lost: one could not be read")
    assert told(broken, stored(block(1, [1, 1])), broken, broken) == [seen(1, tokens=[1, 1]), lost]


@pytest.mark.parametrize(
    "unread",
    [
        {"type": "stored"},
        {"type": "stored", "blocks": [{"block_hash": "x"}]},
        {"type": "stored", "blocks": [{"block_hash": 3, "tokens": [7, 8]}]},
        {"type": "created"},
        {"type": "updated", "block_hash": 1, "cache_level": None, "priority": {"new_value": 50, "old_value": 35}},
        {"type": "something_new", "block_hashes": [1]},
    ],
)
def test_what_cannot_be_read_and_takes_nothing_away_is_passed_over(unread: dict[str, Any]) -> None:
    assert told(stored(block(1, [1, 1])), unread, removed(1)) == [
        seen(1, tokens=[1, 1]),
        BlocksRemoved(block_hashes=(1,)),
    ]


@pytest.mark.parametrize("odd", [7, None, [], {}, {"event_id": "x", "data": {}}, {"event_id": 2, "data": 5}])
def test_what_is_no_event_shows_as_a_gap(odd: Any) -> None:
    events = [{"event_id": 1, "data": stored(block(1, [1, 1]))}, odd, {"event_id": 3, "data": removed(1)}]
    assert read(EventReader(), events) == [seen(1, tokens=[1, 1]), CacheCleared(reason="events lost: 1")]


@pytest.mark.parametrize("answer", [b"", b"{}", b"<html>", b"[1,", b"\xff", b"null", b"[" * 100_000])
def test_what_is_no_list_has_no_events(answer: bytes) -> None:
    assert events_of(answer) is None


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trtevents, "MAX_BLOCKS", 2)
    blocks = [block(i, [i, i]) for i in (1, 2, 3)]
    assert told(stored(*blocks), removed(1, 2, 3)) == [
        seen(1, 2, tokens=[1, 1, 2, 2]),
        BlocksRemoved(block_hashes=(1, 2)),
    ]


class Tree:
    """A model of one rank's cache: prompts share nodes, leaves go first, nodes move between two levels."""

    def __init__(self, rank: int, fake: FakeTrtllm, rng: random.Random) -> None:
        self.rank, self.fake, self.rng = rank, fake, rng
        self.nodes: dict[tuple[int, ...], int] = {}  # tokens from the root -> level

    def step(self, prompt: Sequence[int]) -> None:
        leaves = [tokens for tokens in self.nodes if not any(self._is_child(other, tokens) for other in self.nodes)]
        choice = self.rng.random()
        if choice < 0.25 and leaves:
            tokens = self.rng.choice(leaves)
            del self.nodes[tokens]
            self._emit(removed(_hash(tokens)))
        elif choice < 0.5 and self.nodes:
            tokens = self.rng.choice(sorted(self.nodes))
            self.nodes[tokens] = 1 - self.nodes[tokens]
            self._emit(updated(_hash(tokens), 1 - self.nodes[tokens], self.nodes[tokens]))
        else:
            chain = [tuple(prompt[:end]) for end in range(BLOCK, len(prompt) + 1, BLOCK)]
            new = [tokens for tokens in chain if tokens not in self.nodes]
            self.nodes.update(dict.fromkeys(new, 0))
            if new:
                parent = _hash(new[0][:-BLOCK]) if len(new[0]) > BLOCK else None
                self._emit(stored(*(block(_hash(tokens), tokens[-BLOCK:]) for tokens in new), parent=parent))

    def _emit(self, data: dict[str, Any]) -> None:
        self.fake.emit(data, rank=self.rank, window=4096)

    @staticmethod
    def _is_child(tokens: tuple[int, ...], of: tuple[int, ...]) -> bool:
        return len(tokens) == len(of) + BLOCK and tokens[: len(of)] == of


def _hash(tokens: Sequence[int]) -> int:
    return int.from_bytes(b"\1" + bytes(tokens), "big")


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 80), st.integers(1, 2), st.integers(1, 10))
def test_belief_adds_up_to_what_the_engine_holds(seed: int, steps: int, ranks: int, poll_every: int) -> None:
    """What the fabric believes, tier by tier and copy by copy, is what the ranks hold, however the events are cut into
    answers."""
    rng, fake, reader, index = random.Random(seed), FakeTrtllm(), EventReader(), BlockIndex()
    trees = [Tree(rank, fake, rng) for rank in range(ranks)]
    believed: Counter[tuple[str, int]] = Counter()
    for step in range(steps):
        rng.choice(trees).step([rng.randrange(2) for _ in range(BLOCK * rng.randint(1, 4))])
        if step % poll_every == 0 or step == steps - 1:
            for event in read(reader, fake.drain()):
                match event:
                    case BlocksStored():
                        believed.update((event.medium, key) for key in index.stored(event))
                    case BlocksRemoved():
                        believed.subtract((event.medium, key) for key in index.removed(event))
                    case _:
                        raise AssertionError(event)
    held = Counter(
        ("CPU" if level else "GPU", token_keys(tokens, BLOCK)[-1])
        for tree in trees
        for tokens, level in tree.nodes.items()
    )
    assert +believed == held and not -believed
    assert (index.orphans, index.unknown) == (0, 0)


@given(st.lists(st.binary(max_size=40)))
@example([b'{"event_id": 1, "data": {"type": "\xff"}}'])
@example([b'{"event_id": 1, "data": {"type": "stored", "blocks": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}"])
def test_no_bytes_stop_the_reader(pieces: list[bytes]) -> None:
    list(EventReader().read([msgspec.Raw(piece) for piece in pieces]))

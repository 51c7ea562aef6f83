"""KV events from a real ZMQ publisher: both encodings, gaps healed and not, restarts, and batches that are garbage."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import msgspec
import pytest
from engine_fakes import KvPublisher, as_array, cleared, port_of, publishing, removed, stored

from amf.engines.blockindex import BlockIndex
from amf.engines.engine import BlocksRemoved, BlocksStored, CacheCleared
from amf.engines.keys import namespace, root_key, token_keys
from amf.engines.kvfeed import KvFeed, KvSource
from amf.engines.kvwire import BatchDecoder, KvEvent, MalformedBatch

WAIT_S = 10.0


class Listener:
    """Reads a feed with a bound on each wait."""

    def __init__(self, events: AsyncIterator[KvEvent]) -> None:
        self._events = events

    async def take(self, count: int) -> list[KvEvent]:
        async with asyncio.timeout(WAIT_S):
            return [await anext(self._events) for _ in range(count)]


@asynccontextmanager
async def listening(
    publisher: KvPublisher, *, replay: bool = True, timeout_s: float = WAIT_S
) -> AsyncIterator[Listener]:
    source = KvSource(endpoint=publisher.endpoint, replay_endpoint=publisher.replay_endpoint if replay else None)
    async with aclosing(KvFeed(source, timeout_s).events()) as events:
        first = asyncio.ensure_future(anext(events))
        await asyncio.wait_for(publisher.subscribed(), WAIT_S)

        async def all_events() -> AsyncIterator[KvEvent]:
            yield await first
            async for event in events:
                yield event

        yield Listener(all_events())
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


def block(name: int, parent: int | None = None) -> dict[str, Any]:
    return stored([name], [name, name + 1], parent)


def names(events: list[KvEvent]) -> list[object]:
    """The blocks stored, in order, and what else happened."""
    return [event.block_hashes[0] if isinstance(event, BlocksStored) else event for event in events]


@pytest.mark.parametrize("encoding", ["maps", "arrays"])
async def test_both_encodings_say_the_same(encoding: str) -> None:
    async with publishing(encoding) as publisher, listening(publisher) as listener:
        await publisher.send(
            stored([11, b"\x22" * 32], [1, 2, 3, 4], extra_keys=[["tenant"], None]),
            removed(11),
            cleared(),
            {"type": "SomethingNew", "field": 1},
            stored([33], [5, 6], b"\x22" * 32, medium="CPU"),
        )
        assert await listener.take(4) == [
            BlocksStored(
                block_hashes=(11, b"\x22" * 32),
                parent_hash=None,
                token_ids=(1, 2, 3, 4),
                block_tokens=2,
                cache_salt="tenant",
            ),
            BlocksRemoved(block_hashes=(11,)),
            CacheCleared(reason="the engine reset its cache"),
            BlocksStored(block_hashes=(33,), parent_hash=b"\x22" * 32, token_ids=(5, 6), block_tokens=2, medium="CPU"),
        ]


async def test_any_first_number_is_accepted_and_the_past_is_fetched() -> None:
    async with publishing() as publisher:
        await publisher.send(block(1), withhold=True)
        await publisher.send(block(2, 1), withhold=True)
        async with listening(publisher) as listener:
            await publisher.send(block(3, 2))
            assert names(await listener.take(3)) == [1, 2, 3]
        assert publisher.replays == [0]
        async with listening(publisher, replay=False) as listener:
            await publisher.send(block(4, 3))
            assert names(await listener.take(1)) == [4]


async def test_a_gap_is_filled_from_the_replay() -> None:
    async with publishing() as publisher, listening(publisher) as listener:
        await publisher.send(block(1))
        await publisher.send(block(2, 1), removed(1), withhold=True)
        await publisher.send(block(3, 2), withhold=True)
        await publisher.send(block(4, 3))
        await publisher.send(block(5, 4))
        assert names(await listener.take(6)) == [1, 2, BlocksRemoved(block_hashes=(1,)), 3, 4, 5]
        assert publisher.replays == [0]


@pytest.mark.parametrize("forgotten", [[1], [0, 1], [2], [0], [0, 1, 2]])
async def test_a_gap_that_is_not_covered_clears(forgotten: list[int]) -> None:
    """Whatever of the lost batches the publisher forgot, belief ends, and what it sent after the hole is kept."""
    async with publishing() as publisher, listening(publisher) as listener:
        await publisher.send(block(10))
        await publisher.send(block(11), withhold=True)
        await publisher.send(block(12), withhold=True)
        for number in forgotten:
            del publisher.buffer[number]
        kept = {1: [12], 2: []}.get(max(forgotten), [11, 12])
        await publisher.send(block(13))
        events = await listener.take(3 + len(kept))
        lost = CacheCleared(reason=f"events lost: 2 batches, of which {len(kept)} were sent again")
        assert names(events[: 2 + len(kept)]) == [10, lost, *kept]
        assert names(events[2 + len(kept) :]) == [13]


async def test_a_replay_longer_than_the_publishers_queue_is_fetched_in_parts() -> None:
    """ZMQ drops what exceeds the replay socket's queue, silently, the end mark included."""
    count = 3000
    async with publishing(replay_queue=100) as publisher:
        for name in range(count):
            await publisher.send(block(name), withhold=True)
        async with listening(publisher) as listener:
            await publisher.send(block(count))
            assert names(await listener.take(count + 1)) == list(range(count + 1))
    assert len(publisher.replays) > 1
    assert publisher.replays == sorted(set(publisher.replays))


async def test_a_gap_without_a_replay_socket_clears() -> None:
    async with publishing() as publisher, listening(publisher, replay=False) as listener:
        await publisher.send(block(1))
        await publisher.send(block(2), withhold=True)
        await publisher.send(block(3))
        lost = CacheCleared(reason="events lost: 1 batches, of which 0 were sent again")
        assert names(await listener.take(3)) == [1, lost, 3]


async def test_a_replay_that_never_answers_is_given_up() -> None:
    async with publishing() as publisher, publishing() as mute:
        publisher.replay_endpoint = mute.endpoint  # a PUB socket: takes the question, never answers
        async with listening(publisher, timeout_s=0.2) as listener:
            await publisher.send(block(1))
            await publisher.send(block(2), withhold=True)
            await publisher.send(block(3))
            assert isinstance((await listener.take(3))[1], CacheCleared)


@asynccontextmanager
async def reborn(publisher: KvPublisher) -> AsyncIterator[KvPublisher]:
    """The publisher's next life, on the same ports, once the subscriber has found it."""
    await publisher.close()
    async with publishing("maps", port_of(publisher.endpoint), port_of(publisher.replay_endpoint)) as successor:
        await asyncio.wait_for(successor.subscribed(), WAIT_S)
        yield successor


async def test_a_restart_is_noticed_by_its_lower_number() -> None:
    async with publishing() as publisher, listening(publisher) as listener:
        for name in (1, 2, 3):
            await publisher.send(block(name))
        assert names(await listener.take(3)) == [1, 2, 3]
        async with reborn(publisher) as successor:
            await successor.send(block(50), withhold=True)
            await successor.send(block(51))
            await successor.send(block(52))
            restarted = CacheCleared(reason="the engine restarted")
            assert names(await listener.take(4)) == [restarted, 50, 51, 52]


async def test_a_restart_behind_a_gap_is_not_taken_for_the_old_life() -> None:
    """The new life's numbers continue the old one's: only the content of the last known batch tells them apart."""
    async with publishing() as publisher, listening(publisher) as listener:
        await publisher.send(block(1))
        await publisher.send(block(2))
        assert names(await listener.take(2)) == [1, 2]
        async with reborn(publisher) as successor:
            for name in (50, 51, 52):
                await successor.send(block(name), withhold=True)
            await successor.send(block(53))
            restarted = CacheCleared(reason="the engine restarted")
            assert names(await listener.take(5)) == [restarted, 50, 51, 52, 53]


async def test_garbage_ends_belief_but_not_the_feed() -> None:
    unreadable = CacheCleared(reason="events lost: a batch could not be read")
    async with publishing() as publisher, listening(publisher) as listener:
        await publisher.send(block(1))
        await publisher.send_raw(b"\xc1 not msgpack")
        await publisher.send(block(2))
        await publisher._publish.send_multipart([b"topic", b"short", b"payload"])
        await publisher._publish.send_multipart([b"topic"])
        await publisher.send(block(3))
        assert names(await listener.take(4)) == [1, unreadable, 2, 3]


def decode(*events: Any, decoder: BatchDecoder | None = None) -> list[KvEvent]:
    return (decoder or BatchDecoder()).decode(msgspec.msgpack.encode([1.0, events]))


@pytest.mark.parametrize(
    "payload",
    [
        None,
        7,
        [],
        [1.0],
        [1.0, 7],
        [1.0, [7]],
        [1.0, [[]]],
        [1.0, [{}]],
        [1.0, [{"type": "BlockStored"}]],
        [1.0, [{**block(1), "token_ids": ["a"]}]],
        [1.0, [{**block(1), "block_hashes": "abc"}]],
        [1.0, [{**block(1), "block_size": 2.5}]],
        [1.0, [{**block(1), "extra_keys": [7]}]],
        [1.0, [["BlockRemoved", [None]]]],
    ],
)
def test_what_is_no_batch_is_refused(payload: Any) -> None:
    with pytest.raises(MalformedBatch):
        BatchDecoder().decode(msgspec.msgpack.encode(payload))


def test_unknown_fields_and_missing_optional_ones_are_normal() -> None:
    bare = {
        "type": "BlockStored",
        "block_hashes": [2**64 - 1],
        "parent_block_hash": None,
        "token_ids": [],
        "block_size": 16,
    }
    assert decode({**bare, "future": {"a": [1]}}) == [
        BlocksStored(block_hashes=(2**64 - 1,), parent_hash=None, token_ids=(), block_tokens=16)
    ]
    assert decode(["BlockStored", [1], 2, [3], 1]) == [
        BlocksStored(block_hashes=(1,), parent_hash=2, token_ids=(3,), block_tokens=1)
    ]
    assert decode(["BlockRemoved", [1], "GPU", 0, "future"]) == [BlocksRemoved(block_hashes=(1,))]


def test_only_full_attention_groups_are_indexed() -> None:
    decoder = BatchDecoder()
    window = {"group_idx": 1, "kv_cache_spec_kind": "sliding_window", "kv_cache_spec_sliding_window": 4096}
    full = {"group_idx": 0, "kv_cache_spec_kind": "full_attention"}
    assert names(decode({**block(1), **window}, {**block(2), **full}, decoder=decoder)) == [2]
    assert decode(removed(1, group_idx=1), removed(2, group_idx=0), decoder=decoder) == [
        BlocksRemoved(block_hashes=(2,))
    ]


def test_an_adapters_blocks_are_kept_apart_by_its_name() -> None:
    adapter = {"lora_name": "l", "lora_id": 3}
    first, more = decode(
        stored([1, 2], range(4), extra_keys=[["l", "salt"], ["l"]], **adapter),
        stored([3], [4, 5], 2, extra_keys=[["l"]], **adapter),
    )
    assert (first.block_hashes, first.cache_salt) == ((1, 2), namespace("salt", "l"))
    assert (more.block_hashes, more.cache_salt) == ((3,), "")
    (plain,) = decode(stored([4], [0, 1], extra_keys=[["l"]], **adapter))
    assert plain.cache_salt == namespace("", "l") != namespace("l", "")
    (index, base) = (BlockIndex(), BlockIndex())
    assert index.stored(first) == token_keys(range(4), 2, root_key(namespace("salt", "l")))
    assert base.stored(*decode(stored([1, 2], range(4)))) == token_keys(range(4), 2)


def test_an_adapters_blocks_without_its_name_are_left_out() -> None:
    assert decode(as_array({**block(2), "lora_id": 3})) == []


def test_a_chain_ends_where_an_image_begins() -> None:
    image = {"extra_keys": [["salt"], None, [["mmhash", 0]], None]}
    (event,) = decode(stored([1, 2, 3, 4], range(8), **image))
    assert event == BlocksStored(
        block_hashes=(1, 2), parent_hash=None, token_ids=(0, 1, 2, 3), block_tokens=2, cache_salt="salt"
    )
    assert decode(stored([5], [8, 9], 4, extra_keys=[[["mmhash", 1]]])) == []


def test_the_session_that_stored_a_block_is_told() -> None:
    (event,) = decode({**block(1), "session_id": "run%2520/7"})
    assert isinstance(event, BlocksStored)
    assert event.session_id == "run%20/7"

"""KV events as a subscriber sees them: they add up to the worker's truth, and lost ones can be replayed."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise, takewhile
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio
from emulator_kit import chat, post, served, until

from amf.emulator import Emulator, Faults
from amf.emulator.tokenizer import block_keys, from_ids


class Listener:
    """A subscriber with its own belief: how many copies of each block are stored, by hash."""

    def __init__(self, socket: zmq.asyncio.Socket) -> None:
        self._socket = socket
        self.sequences: list[int] = []
        self.events: list[dict[str, Any]] = []
        self.copies: Counter[int] = Counter()

    async def read_until(self, sequence: int) -> None:
        async with asyncio.timeout(5):
            while not self.sequences or self.sequences[-1] < sequence:
                topic, number, payload = await self._socket.recv_multipart()
                assert topic == b""
                self.sequences.append(int.from_bytes(number, "big"))
                self.take(payload)

    def take(self, payload: bytes) -> None:
        moment, events, rank = msgspec.msgpack.decode(payload)
        assert moment > 1_700_000_000 and rank == 0
        for event in events:
            self.events.append(event)
            match event["type"]:
                case "BlockStored":
                    self.copies.update(event["block_hashes"])
                case "BlockRemoved":
                    self.copies.subtract(event["block_hashes"])
                case "AllBlocksCleared":
                    self.copies.clear()

    def resident(self) -> set[int]:
        assert all(copies >= 0 for copies in self.copies.values())
        return {key for key, copies in self.copies.items() if copies}


@asynccontextmanager
async def subscribed(emulator: Emulator) -> AsyncIterator[Listener]:
    """Empty batches are published until the first arrives: then nothing that follows can be missed."""
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.SUB)
    socket.set_hwm(0)
    socket.subscribe(b"")
    assert emulator.kv_endpoint is not None and emulator.live.kv_feed is not None
    socket.connect(emulator.kv_endpoint)
    try:
        async with asyncio.timeout(5):
            while not await socket.poll(5):
                emulator.live.kv_feed.publisher.publish([])
        yield Listener(socket)
    finally:
        context.destroy(linger=0)


async def replay(emulator: Emulator, start: int) -> list[tuple[int, bytes]]:
    context = zmq.asyncio.Context()
    try:
        dealer = context.socket(zmq.DEALER)
        assert emulator.kv_replay_endpoint is not None
        dealer.connect(emulator.kv_replay_endpoint)
        await dealer.send_multipart([b"", start.to_bytes(8, "big")])
        batches = []
        async with asyncio.timeout(5):
            while True:
                frames = await dealer.recv_multipart()
                if frames == [b"", b"", b"\xff" * 8, b""]:
                    return batches
                empty, topic, number, payload = frames
                assert empty == topic == b""
                batches.append((int.from_bytes(number, "big"), payload))
    finally:
        context.destroy(linger=0)


def last_sequence(emulator: Emulator) -> int:
    assert emulator.live.kv_feed is not None
    return emulator.live.kv_feed.publisher.next_sequence - 1


SHARED = "the shared beginning " * 60


def agents(turn: int) -> list[dict[str, Any]]:
    return [chat(SHARED + f"agent {agent} " * 90 * turn, max_tokens=30) for agent in range(8)]


async def load(client: Any, rounds: int) -> None:
    """Conversations that share a beginning and together do not fit."""
    for turn in range(rounds):
        await asyncio.gather(*(post(client, "/v1/chat/completions", body) for body in agents(turn)))


async def test_events_add_up_to_the_workers_truth_under_eviction():
    async with served(kv_events_port=0, kv_tokens=4_000) as (emulator, client), subscribed(emulator) as listener:
        await load(client, rounds=4)
        found = []
        for body in agents(turn=3) + agents(turn=2):
            await listener.read_until(last_sequence(emulator))
            assert sum(listener.copies.values()) == emulator.worker.stats.cached_free_blocks
            tokens = (await post(client, "/tokenize", {"messages": body["messages"]}))["tokens"]
            keys = block_keys(from_ids(tokens), 16)[: (len(tokens) - 1) // 16]
            believed = len(list(takewhile(listener.resident().__contains__, keys)))
            usage = (await post(client, "/v1/chat/completions", body))["usage"]
            assert usage["prompt_tokens_details"]["cached_tokens"] == 16 * believed
            found.append(believed / len(keys))
        kinds = Counter(event["type"] for event in listener.events)
    assert kinds["BlockRemoved"] > 50 and kinds["BlockStored"] > 50
    assert min(found) < 0.9 < max(found)
    assert all(b == a + 1 for a, b in pairwise(listener.sequences))


async def test_a_stored_event_names_its_chain_and_tokens_and_whose_they_are():
    async with served(kv_events_port=0) as (emulator, client), subscribed(emulator) as listener:
        body = {"prompt": "word" * 70, "max_tokens": 30, "ignore_eos": True, "cache_salt": "tenant"}
        await post(client, "/v1/completions", body, **{"X-Session-ID": "run-7"})
        await listener.read_until(last_sequence(emulator))
    stored = listener.events
    assert {event["type"] for event in stored} == {"BlockStored"}
    tokens = [token for event in stored for token in event["token_ids"]]
    hashes = [key for event in stored for key in event["block_hashes"]]
    assert len(hashes) == 99 // 16  # the last of 100 tokens was never computed
    assert hashes == block_keys(from_ids(tokens), 16, "tenant")
    assert all(0 <= key < 2**64 for key in hashes)
    parents = [event["parent_block_hash"] for event in stored]
    assert parents[0] is None
    assert parents[1:] == [event["block_hashes"][-1] for event in stored[:-1]]
    assert stored[0]["extra_keys"] == [["tenant"], None, None, None]
    for event in stored:
        assert (event["block_size"], event["medium"], event["lora_id"]) == (16, "GPU", None)
        assert (event["session_id"], event["group_idx"], event["kv_cache_spec_kind"]) == ("run-7", 0, "full_attention")
    assert "extra_keys" not in stored[1]


async def test_replay_gives_the_same_batches_from_any_start():
    async with served(kv_events_port=0) as (emulator, client), subscribed(emulator) as listener:
        await load(client, rounds=2)
        await listener.read_until(last_sequence(emulator))
        whole, tail, nothing = [await replay(emulator, start) for start in (0, 5, 10**6)]
    again = Listener(listener._socket)
    for _, payload in whole:
        again.take(payload)
    assert [number for number, _ in whole][listener.sequences[0] :] == listener.sequences
    assert again.events == listener.events
    assert tail == whole[5:] and nothing == []


async def test_a_reset_is_told_with_the_next_request():
    async with served(kv_events_port=0) as (emulator, client), subscribed(emulator) as listener:
        await load(client, rounds=1)
        told = last_sequence(emulator)
        await post(client, "/reset_prefix_cache", None)
        assert last_sequence(emulator) == told
        await post(client, "/v1/completions", {"prompt": "x" * 99, "max_tokens": 1})
        await listener.read_until(last_sequence(emulator))
    assert {"type": "AllBlocksCleared"} in listener.events
    assert len(listener.resident()) == 1


async def test_an_aborted_request_leaves_no_gap():
    async with served(kv_events_port=0, time_scale=1.0) as (emulator, client), subscribed(emulator) as listener:
        body = {"prompt": "word" * 5000, "max_tokens": 1000, "stream": True, "ignore_eos": True}
        async with client.post("/v1/completions", json=body):
            pass  # leaves while its prompt is being read
        await until(lambda: emulator.worker.stats.running + emulator.worker.stats.waiting == 0)
        await post(client, "/v1/completions", {"prompt": "y" * 99, "max_tokens": 1})
        await listener.read_until(last_sequence(emulator))
        assert sum(listener.copies.values()) == emulator.worker.stats.cached_free_blocks
        assert emulator.live.pending == 0


@pytest.mark.parametrize("probability", [0.5, 1.0])
async def test_dropped_batches_use_up_their_number_and_are_not_replayed(probability: float):
    faults = Faults(drop_events=probability)
    async with served(kv_events_port=0, faults=faults) as (emulator, client):
        await load(client, rounds=2)
        sent = last_sequence(emulator) + 1
        kept = [number for number, _ in await replay(emulator, 0)]
    assert sent > 10
    assert kept == sorted(set(kept))
    assert kept == [] if probability == 1 else 0 < len(kept) < sent


async def test_sources_name_the_endpoints():
    async with served(kv_events_port=0) as (emulator, client):
        async with client.get("/kv_event_sources") as response:
            source = (await response.json())["0"]
        assert emulator.kv_endpoint and emulator.kv_replay_endpoint
        assert source["endpoint"].replace("*", "127.0.0.1") == emulator.kv_endpoint
        assert source["replay_endpoint"].replace("*", "127.0.0.1") == emulator.kv_replay_endpoint
        assert source["enable_kv_cache_events"] and source["publisher"] == "zmq"

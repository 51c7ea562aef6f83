"""A client that says nothing of itself: its conversation is one run, stays where it is warm, and herds with nobody."""

import asyncio
import random
from collections import Counter
from typing import Any

import pytest
from e2e_kit import MODEL, House, house, workers_counters
from openai import AsyncOpenAI

from amf.emulator import EmulatorConfig
from amf.emulator.chat import render_chat
from amf.emulator.protocol import Message
from amf.emulator.tokenizer import BYTES_PER_TOKEN, block_keys, count, encode

BLOCK = 16
WORDS = (
    "read",
    "the",
    "file",
    "then",
    "patch",
    "a",
    "test",
    "and",
    "run",
    "it",
    "again",
    "before",
    "you",
    "say",
    "what",
)


def text(seed: int, size_bytes: int) -> str:
    """Words without repetition at a distance: no two texts of different seeds share more than a word."""
    rng = random.Random(seed)
    words: list[str] = []
    while sum(map(len, words)) + len(words) < size_bytes:
        words += [rng.choice(WORDS), str(rng.randrange(1000))]
    return " ".join(words)[:size_bytes]


class Conversation:
    """A plain chat that resends its history. Keeps what the answers said."""

    def __init__(self, client: AsyncOpenAI, system: str, context: str, *, stream: bool = False) -> None:
        self.client = client
        self.stream = stream
        self.messages: list[dict[str, str]] = [{"role": "system", "content": system}]
        self.context = context
        self.prompts: list[list[dict[str, str]]] = []
        self.headers: list[Any] = []
        self.usages: list[Any] = []

    async def say(self, words: str) -> None:
        """One turn. The first also carries the private context."""
        content = words if self.prompts else f"{self.context}\n{words}"
        self.messages.append({"role": "user", "content": content})
        self.prompts.append(list(self.messages))
        fields = {"stream": True, "stream_options": {"include_usage": True}} if self.stream else {}
        raw = await self.client.chat.completions.with_raw_response.create(
            model=MODEL, messages=self.messages, max_tokens=100, **fields
        )
        if self.stream:
            chunks = [chunk async for chunk in raw.parse()]
            answer = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
            usage = chunks[-1].usage
        else:
            whole = raw.parse()
            answer, usage = whole.choices[0].message.content, whole.usage
        self.headers.append(raw.headers)
        self.usages.append(usage)
        self.messages.append({"role": "assistant", "content": answer})

    @property
    def cached(self) -> list[int]:
        return [usage.prompt_tokens_details.cached_tokens for usage in self.usages]


def said(name: str, conversations: list[Conversation]) -> list[str]:
    return [headers[name] for each in conversations for headers in each.headers]


def ideal_cached_tokens(conversations: list[Conversation]) -> int:
    """What one cache without bounds would have spared: each prompt's leading blocks that some earlier call had computed."""
    known: set[int] = set()
    total = 0
    for each in conversations:
        for messages in each.prompts:
            tokens = render_chat([Message(**message) for message in messages])
            keys = block_keys(tokens, BLOCK)
            hit = next((depth for depth, key in enumerate(keys) if key not in known), len(keys))
            total += min(hit * BLOCK, count(tokens) - 1)
            answer = encode(each.messages[len(messages)]["content"])
            known.update(block_keys(tokens + answer[:-BYTES_PER_TOKEN], BLOCK))  # the last token is never computed
    return total


async def test_a_conversation_is_one_run_and_stays_where_it_is_warm() -> None:
    """Contexts are worth their prefill: well above what a busy machine makes calls seem to cost."""
    config = EmulatorConfig(model=MODEL, time_scale=10.0, block_tokens=BLOCK)
    async with house(config, config, config) as built, AsyncOpenAI(base_url=built.url, api_key="none") as client:
        chats = [
            Conversation(client, "You help.", text(number, 40_000 + 7_000 * number), stream=number % 2 == 0)
            for number in range(5)
        ]
        for turn in range(4):
            for chat in chats:  # one after the other, so that the workers' counters can be read between calls
                before = await workers_counters(built.emulators)
                await chat.say(f"turn {turn}")
                after = await workers_counters(built.emulators)
                assert after["cached"] - before["cached"] == chat.cached[-1], "the engine's own count"
                assert after["prompt"] - before["prompt"] == chat.usages[-1].prompt_tokens
        assert set(said("x-amf-identity-source", chats)) == {"derived"}
        for chat in chats:
            assert len(set(said("x-amf-run-id", [chat]))) == 1 and len(set(said("x-amf-worker", [chat]))) == 1
            before_last = chat.usages[2].prompt_tokens
            assert chat.cached[0] == 0 and chat.cached[3] >= before_last // BLOCK * BLOCK
            assert all(int(headers["x-amf-warm-tokens"]) > 0 for headers in chat.headers[1:])
        runs = set(said("x-amf-run-id", chats))
        assert len(runs) == len(chats) and all(built.fabric.run_report(run)["finished"] == 4 for run in runs)
        assert sum(map(sum, (chat.cached for chat in chats))) == ideal_cached_tokens(chats)
        assert len(set(said("x-amf-worker", chats))) > 1


AGENTS, TURNS, WORKERS = 24, 5, 4


async def agents_at_work(built: House, one_by_one: bool) -> list[Conversation]:
    """One system prompt, a private context each, no pause between turns. Their first calls come all at once, or each when
    the one before is answered: then the worker with the warm system prompt is always free to take one more."""

    async def work(chat: Conversation) -> None:
        while len(chat.prompts) < TURNS:
            await chat.say(f"step {len(chat.prompts)}: " + text(len(chat.prompts), 200))

    async with AsyncOpenAI(base_url=built.url, api_key="none") as client, asyncio.timeout(60):
        system = text(999, 4096)
        chats = [Conversation(client, system, text(number, 8192), stream=number % 2 == 0) for number in range(AGENTS)]
        if one_by_one:
            for chat in chats:
                await chat.say("step 0: " + text(0, 200))
        await asyncio.gather(*map(work, chats))
    return chats


@pytest.mark.parametrize("one_by_one", [False, True], ids=["at-once", "one-by-one"])
async def test_agents_that_share_a_system_prompt_do_not_herd(one_by_one: bool) -> None:
    config = EmulatorConfig(model=MODEL, time_scale=10.0, block_tokens=BLOCK)
    async with house(*[config] * WORKERS) as built:
        chats = await agents_at_work(built, one_by_one)
        calls = Counter(said("x-amf-worker", chats))
        homes = Counter(chat.headers[0]["x-amf-worker"] for chat in chats)
        truth = await workers_counters(built.emulators)
        assert truth["cached"] == sum(map(sum, (chat.cached for chat in chats)))
        ratio, ideal = truth["cached"] / truth["prompt"], ideal_cached_tokens(chats) / truth["prompt"]
        assert set(calls) == {"w0", "w1", "w2", "w3"}
        assert max(calls.values()) <= 1.5 * AGENTS * TURNS / WORKERS, calls
        assert max(homes.values()) <= 1.5 * AGENTS / WORKERS, homes
        assert ideal - 0.02 <= ratio <= ideal, (ratio, ideal)
        assert len(set(said("x-amf-run-id", chats))) == AGENTS

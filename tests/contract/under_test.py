"""One engine under the contract: where it is, what it is expected to tell, and how it is asked through its adapter."""

import asyncio
import itertools
import json
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from amf.engines.engine import Engine, EngineInfo, EngineRequest
from amf.engines.options import EngineOptions

COMPLETIONS, CHAT, EMBEDDINGS = "/v1/completions", "/v1/chat/completions", "/v1/embeddings"
SESSION_ID = "run-1"
FIRST_TOKEN, LAST_TOKEN = 3, 999  # ids that mean something to every engine's tokenizer
_serials = itertools.count()
_WORDS = ("baceni", "dofugu", "gulopa", "sedi", "wezi", "hajeki")


@dataclass(frozen=True, kw_only=True)
class EngineUnderTest:
    """A running engine, with a KV cache of a few thousand tokens, that nobody else uses.

    `expected`: what the probe must tell, capabilities included; of the version its beginning. `slots`: calls that it serves at
    once. `long_tokens`: an answer that takes it ten seconds and more, and that its cache can hold beside short ones.
    `counts_by_tokens`: in how many it counts what is cached, a block or one. `answers_otherwise`: questions of
    `REFUSED` that get another status. `reset_path`: where its cache is reset by POST, if anywhere.
    """

    url: str
    options: EngineOptions
    expected: EngineInfo
    slots: int
    long_tokens: int
    counts_by_tokens: int
    answers_otherwise: Mapping[str, int] = field(default_factory=dict)
    reset_path: str | None = None
    tells_resets_at_once: bool = False  # otherwise with the next call
    usage_unasked: tuple[str, ...] = (COMPLETIONS, CHAT)  # paths whose streams end with the usage though nobody asked
    frees_whole_answers: bool = True  # a call that is not streamed ends when its connection does
    frees_the_waiting: bool = True  # also a call that waits for a slot: else it is counted until its turn comes
    counts_all_answers: bool = True  # its usage covers them all where a call has several: else one
    draws_by_seed: bool = True  # the same `seed` draws the same answer
    quotes_bodies: bool = False  # its complaints quote the body, with what the adapter put in
    dies_of: frozenset[str] = frozenset()  # questions of `REFUSED` that end it: not put to it
    computes: frozenset[str] = frozenset()  # those whose prompt it computes before it refuses them
    embeds: bool = False

    @property
    def model(self) -> str:
        return self.expected.models[0]

    def warm_tokens(self, shared_tokens: int, prompt_tokens: int) -> int:
        """What it finds cached of a prompt whose beginning it has seen: never the last token, whose successor is asked for."""
        return min(shared_tokens, prompt_tokens - 1) // self.counts_by_tokens * self.counts_by_tokens

    def request(self, path: str = COMPLETIONS, *, urgency_s: float = 0.0, **body: Any) -> EngineRequest:
        """A call for one token unless `body` says otherwise. Every call of a test has an id of its own."""
        whole = {"model": self.model, "max_tokens": 1, "ignore_eos": True, **body}
        return EngineRequest(
            request_id=f"r{next(_serials)}",
            path=path,
            body=json.dumps({name: value for name, value in whole.items() if value is not None}).encode(),
            headers={"content-type": "application/json"},
            urgency_s=urgency_s,
            session_id=SESSION_ID,
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """The body of an answer, whole or streamed."""

    status: int
    body: bytes

    @property
    def events(self) -> list[dict[str, Any]]:
        """The answer as a stream's events; a whole answer is one."""
        lines = [line[6:] for line in self.body.split(b"\n") if line.startswith(b"data: {")]
        return [json.loads(line) for line in lines or [self.body]]

    @property
    def usage(self) -> dict[str, int] | None:
        """Prompt, answer and cached tokens. None: the answer does not tell."""
        usage = self.events[-1].get("usage")
        if usage is None:
            return None
        details = usage.get("prompt_tokens_details") or {}
        cached = details.get("cached_tokens") or 0
        return {"prompt": usage["prompt_tokens"], "output": usage["completion_tokens"], "cached": cached}

    @property
    def complaint(self) -> str:
        """What an error says, in whichever of the usual forms."""
        told = json.loads(self.body)
        error = told.get("error", told)
        return error.get("message") or error["detail"]

    @property
    def cached_tokens(self) -> int:
        assert self.usage is not None, self.body
        return self.usage["cached"]

    @property
    def ends(self) -> dict[int, str]:
        """Why each choice ended."""
        choices = [choice for event in self.events for choice in event.get("choices", ())]
        return {choice["index"]: reason for choice in choices if (reason := choice.get("finish_reason"))}

    def text(self, index: int = 0) -> str:
        choices = [choice for event in self.events for choice in event.get("choices", ()) if choice["index"] == index]
        return "".join(_text(choice) for choice in choices)


def _text(choice: dict[str, Any]) -> str:
    if "text" in choice:
        return choice["text"]
    return (choice.get("message") or choice.get("delta") or {}).get("content") or ""


async def ask(engine: Engine, request: EngineRequest) -> Answer:
    """The answer, whatever its status."""
    async with engine.generate(request) as upstream:
        return Answer(upstream.status, b"".join([chunk async for chunk in upstream.chunks()]))


async def complete(engine: Engine, request: EngineRequest) -> Answer:
    """The answer to a call that must succeed."""
    answer = await ask(engine, request)
    assert answer.status == 200, answer.body
    return answer


@asynccontextmanager
async def occupied(engine: Engine, under_test: EngineUnderTest, slots: int) -> AsyncIterator[None]:
    """So many calls are being answered, each for as long as the block lasts, and none is less urgent than any other call."""
    async with AsyncExitStack() as stack:
        for number in range(slots):
            answer = {"max_tokens": under_test.long_tokens // under_test.slots, "stream": True}
            request = under_test.request(urgency_s=-1_000.0, prompt=prompt(f"occupies {number}", 60), **answer)
            upstream = await stack.enter_async_context(engine.generate(request))
            assert upstream.status == 200
            await anext(aiter(upstream.chunks()))
        yield


def prompt(name: str, tokens: int) -> list[int]:
    """Token ids, the same for a name every time, and with another name others from the first on."""
    draw = random.Random(name)
    return [draw.randint(FIRST_TOKEN, LAST_TOKEN) for _ in range(tokens)]


def words(name: str, count: int) -> str:
    draw = random.Random(name)
    return " ".join(draw.choice(_WORDS) for _ in range(count))


def question(path: str, name: str) -> dict[str, Any]:
    """A prompt of some hundred tokens for the path."""
    if path == CHAT:
        return {"messages": [{"role": "user", "content": f"{name}: {words(name, 120)}"}]}
    return {"prompt": prompt(name, 325)}


async def bare(under_test: EngineUnderTest, request: EngineRequest) -> Answer:
    """The answer without an adapter in between, on a connection of its own."""
    url = under_test.url + request.path
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, data=request.body, headers=request.headers) as response,
    ):
        return Answer(response.status, await response.read())


async def within(limit_s: float, holds: Callable[[], Any]) -> None:
    """Wait until it holds. Raises TimeoutError."""
    async with asyncio.timeout(limit_s):
        while not holds():
            await asyncio.sleep(0.01)

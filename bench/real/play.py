"""Sends a stream to a real vLLM and writes down what came of it.

A group is sent while the engine is halted between two iterations. Each request is sent when the one before it has its response
head and the engine core has answered a question that came after it, so that they are queued in the order of their names.
Block events come over ZMQ and are read by the gateway's own decoder and block index; one batch is one iteration.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import aiohttp
import zmq
import zmq.asyncio

from amf.engines.blockindex import BlockIndex
from amf.engines.engine import BlocksRemoved, BlocksStored
from amf.engines.kvwire import BatchDecoder
from amf.engines.metrics import SampleReader
from real.iterations import IterationSeen, read_iterations
from real.seen import Seen, Step
from real.server import MODEL_NAME, Server
from real.traffic import Ask, Stream, Wave

QUIET_S = 0.5  # a stream's last events lag its last answer: how long to wait for one more
LOG_S = 0.1  # the log lags the answers: how long it must say nothing new
_PREEMPTIONS = SampleReader(("vllm:num_preemptions_total",))


@dataclass
class Answer:
    """One request's way. Seconds on the monotonic clock."""

    sent_s: float
    first_token_s: float = 0.0
    end_s: float = 0.0
    cached_tokens: int = 0
    tokens: list[int] = field(default_factory=list)
    arrival: int = 0  # iterations before it
    times_s: list[float] = field(default_factory=list)  # when each token came


class Player:
    """A client of one server. Use `open_player`."""

    def __init__(self, server: Server, session: aiohttp.ClientSession, events: "_Events") -> None:
        self._server = server
        self._session = session
        self._events = events

    async def play(self, stream: Stream) -> tuple[list[Wave], Seen]:
        """The whole stream, from an empty cache on: the waves and the engine's account of them."""
        await self.reset()
        seen, waves, before = Seen(), list[Wave](), await self.preemptions()
        first, came_s = len(await self.iterations()), dict[str, list[float]]()
        while (wave := stream.next_wave(seen.outputs)) is not None:
            waves.append(wave)
            for ask, answer in zip(wave, await self._wave(wave), strict=True):
                seen.cached[ask.name] = answer.cached_tokens
                seen.ends[ask.name] = answer.end_s
                came_s[ask.name] = answer.times_s
                seen.outputs[ask.name] = tuple(answer.tokens)
                seen.arrivals[ask.name] = answer.arrival - first
        seen.steps = await self._events.until_quiet()
        seen.preemptions = await self.preemptions() - before
        iterations = (await self.iterations())[first:]
        seen.iteration_tokens = [iteration.tokens for iteration in iterations]
        shortest_s = min(iteration.elapsed_s for iteration in iterations)
        seen.held_up = {name: held_up(times_s, shortest_s) for name, times_s in came_s.items()}
        return waves, seen

    async def reset(self) -> None:
        """Forget all cached blocks and all events of before: the engine tells of the former with its next request."""
        await self._post("/reset_prefix_cache")
        await self.ask(Ask(name="reset", prompt=(3, 4, 5), output_tokens=1))
        await self._events.until_quiet()

    async def iterations(self) -> Sequence[IterationSeen]:
        """Since the server started, the engine being idle or halted. Waits until its log says no more."""
        size, found = -1, read_iterations(self._server.log)
        while len(found) != size:
            await asyncio.sleep(LOG_S)
            size, found = len(found), read_iterations(self._server.log)
        return found

    async def preemptions(self) -> int:
        """Since the server started."""
        async with self._session.get(self._server.url + "/metrics") as response:
            return round(sum(sample.value for sample in _PREEMPTIONS.read(await response.text())))

    async def ask(self, ask: Ask) -> Answer:
        """Send one request and read its answer."""
        response, answer = await self._send(ask)
        await self._read(response, answer, ask)
        return answer

    async def _wave(self, wave: Wave) -> list[Answer]:
        answers: list[Answer] = []
        tasks: list[asyncio.Task[None]] = []
        for _, group in groupby(wave, key=lambda ask: ask.group):
            asks = list(group)
            if answers:
                leader = next(place for place, ask in enumerate(wave) if ask.group == asks[0].group - 1)
                while len(answers[leader].tokens) < asks[0].after_tokens and not tasks[leader].done():
                    await asyncio.sleep(0.001)
            await self._post("/pause?mode=keep&clear_cache=false")
            arrival = len(await self.iterations())
            for ask in asks:
                response, answer = await self._send(ask)
                answer.arrival = arrival
                answers.append(answer)
                tasks.append(asyncio.create_task(self._read(response, answer, ask)))
                async with self._session.get(self._server.url + "/is_paused") as paused:
                    paused.raise_for_status()
            await self._post("/resume")
        await asyncio.gather(*tasks)
        return answers

    async def _send(self, ask: Ask) -> tuple[aiohttp.ClientResponse, Answer]:
        body = {
            "model": MODEL_NAME,
            "prompt": list(ask.prompt),
            "max_tokens": ask.output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "return_token_ids": True,
        }
        if self._server.setup.scheduling == "priority":
            body["priority"] = ask.priority
        sent_s = time.monotonic()
        response = await self._session.post(
            self._server.url + "/v1/completions", json=body, headers={"X-Request-Id": ask.name}
        )
        if response.status != 200:
            raise RuntimeError(f"{ask.name}: status {response.status}: {await response.text()}")
        return response, Answer(sent_s=sent_s)

    async def _read(self, response: aiohttp.ClientResponse, answer: Answer, ask: Ask) -> None:
        rest = b""
        async for piece in response.content.iter_any():
            now_s = time.monotonic()
            *lines, rest = (rest + piece).split(b"\n")
            chunks = [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]
            tokens = [token for chunk in chunks for choice in _choices(ask, chunk) for token in choice["token_ids"]]
            if tokens:
                answer.tokens += tokens
                answer.first_token_s = answer.first_token_s or now_s
                answer.times_s += [now_s] * len(tokens)
                answer.end_s = now_s
            for usage in (chunk["usage"] for chunk in chunks if chunk.get("usage")):
                answer.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        if len(answer.tokens) != ask.output_tokens:
            raise RuntimeError(f"{ask.name}: {len(answer.tokens)} tokens came, not {ask.output_tokens}")

    async def _post(self, path: str) -> None:
        async with self._session.post(self._server.url + path) as response:
            response.raise_for_status()


def held_up(times_s: Sequence[float], shortest_s: float) -> int:
    """How many of the last tokens came faster than iterations of `shortest_s` can make them: 1 if none did."""
    return max(n for n in range(1, len(times_s) + 1) if n == 1 or times_s[-1] - times_s[-n] < (n - 1) * shortest_s)


def _choices(ask: Ask, chunk: dict[str, Any]) -> list[dict[str, Any]]:
    if "error" in chunk:
        raise RuntimeError(f"{ask.name}: {chunk['error']}")
    choices: list[dict[str, Any]] = chunk["choices"]
    return choices


class _Events:
    """Batches of block events as steps."""

    def __init__(self, socket: zmq.asyncio.Socket) -> None:
        self._socket = socket
        self._decoder = BatchDecoder()
        self._index = BlockIndex()
        self._next = -1

    async def until_quiet(self) -> list[Step]:
        """Everything since the last time asked. Raises RuntimeError if a batch was lost."""
        steps = []
        while await self._socket.poll(1_000 * QUIET_S):
            _, number, payload = await self._socket.recv_multipart()
            if self._next not in (-1, int.from_bytes(number, "big")):
                raise RuntimeError(f"block events {self._next} to {int.from_bytes(number, 'big')} were lost")
            self._next = int.from_bytes(number, "big") + 1
            steps.append(self._step(payload))
        return [step for step in steps if step.stored or step.removed]

    def _step(self, payload: bytes) -> Step:
        stored: list[int] = []
        removed: list[int] = []
        for event in self._decoder.decode(payload):
            match event:
                case BlocksStored():
                    stored += self._index.stored(event)
                case BlocksRemoved():
                    removed += self._index.removed(event)
                case _:
                    self._index.clear()
        return Step(stored=tuple(stored), removed=tuple(removed))


@asynccontextmanager
async def open_player(server: Server) -> AsyncIterator[Player]:
    """A client whose subscription to the server's events stands before it sends anything."""
    timeout = aiohttp.ClientTimeout(total=600)
    context: zmq.asyncio.Context = zmq.asyncio.Context.instance()
    socket: Any = context.socket(zmq.SUB)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.SUBSCRIBE, b"")
    socket.connect(server.kv_events)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    try:
        async with aiohttp.ClientSession(timeout=timeout, connector=connector, read_bufsize=2**20) as session:
            player = Player(server, session, _Events(socket))
            await _subscribed(player, socket)
            yield player
    finally:
        socket.close(linger=0)


async def _subscribed(player: Player, socket: zmq.asyncio.Socket) -> None:
    """Ask small things until their events arrive: a new subscription misses what was published before it stood."""
    for attempt in range(40):
        await player.ask(Ask(name=f"knock-{attempt}", prompt=tuple(range(3 + attempt, 103 + attempt)), output_tokens=1))
        if await socket.poll(1_000 * QUIET_S):
            return
    raise RuntimeError("no block events arrive from the engine")

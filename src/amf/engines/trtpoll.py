"""Asks TensorRT-LLM for its KV events. They are handed out once, so what has come is kept until somebody reads it.

An engine that will not tell is asked again, later and later; meanwhile it keeps its events itself, as many as its buffer
holds.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from itertools import chain

import msgspec

from amf.engines.engine import EngineError
from amf.engines.http import NOT_JSON

POLL_INTERVAL_S = 0.25  # between two questions, so that the engine's buffer does not run over
MAX_PENDING_ANSWERS = 4  # that nobody has read; of more the oldest is lost, which the events' numbers show


def events_of(answer: bytes) -> list[msgspec.Raw] | None:
    """The events of one answer, undecoded; None if it is no list."""
    try:
        return msgspec.json.decode(answer, type=list[msgspec.Raw])
    except NOT_JSON:
        return None


class EventPoll:
    """`ask` posts the question: status and body, or EngineError. `has_events`: some came, and the engine has answered since."""

    def __init__(self, ask: Callable[[], Awaitable[tuple[int, bytes]]], max_pause_s: float) -> None:
        self.has_events = False
        self._ask = ask
        self._max_pause_s = max_pause_s
        self._pause_s = POLL_INTERVAL_S
        self._ask_at_s = 0.0
        self._asking = asyncio.Lock()  # two answers at once could be read in the wrong order
        self._pending: deque[list[msgspec.Raw]] = deque(maxlen=MAX_PENDING_ANSWERS)

    async def peek(self) -> list[msgspec.Raw]:
        """What is to be read, with what has happened until now; it stays to be read."""
        self._ask_at_s = 0.0
        await self._fetch()
        return [*chain.from_iterable(self._pending)]

    async def take(self) -> list[msgspec.Raw]:
        """What happened since the last time. Empty, without a question, while the engine is left alone."""
        await self._fetch()
        taken = [*chain.from_iterable(self._pending)]
        self._pending.clear()
        return taken

    async def _fetch(self) -> None:
        now_s = asyncio.get_running_loop().time
        async with self._asking:
            if now_s() < self._ask_at_s:
                return
            try:
                status, answer = await self._ask()
                events = events_of(answer) if status == 200 else None
            except EngineError:
                events = None
            if events is None:
                self.has_events = False
                self._pause_s = min(2 * self._pause_s, self._max_pause_s)
                self._ask_at_s = now_s() + self._pause_s
            else:
                self.has_events = self.has_events or bool(events)
                self._pause_s = POLL_INTERVAL_S
                if events:
                    self._pending.append(events)

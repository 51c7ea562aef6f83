"""One sequence on its way through the worker, as its HTTP handler sees it."""

import asyncio
from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Ticket:
    """`content` holds the tokens of prompt and planned output. `changed` is set whenever one of the fields below it moves;
    sequences of one HTTP request share it. Times are the worker's own seconds."""

    request_id: str
    content: bytes
    keys: list[int]
    prompt_tokens: int
    output_tokens: int
    changed: asyncio.Event
    finish_reason: str = "stop"
    priority: int = 0
    salt: str = ""
    session_id: str = ""
    streams: bool = False

    submitted_s: float = 0.0
    started_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None
    cached_tokens: int = 0
    produced_tokens: int = 0

    @property
    def done(self) -> bool:
        return self.finished_s is not None

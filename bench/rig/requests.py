"""What an agent's SDK sends: chat requests of a given size, one for each of many sessions behind a shared system prompt."""

import json
from functools import cache
from random import Random
from string import ascii_lowercase

from rig.upstream import MODEL

_HEADERS = (
    "Accept-Encoding: gzip, deflate",
    "Accept: application/json",
    "Content-Type: application/json",
    "User-Agent: OpenAI/Python 2.8.1",
    "X-Stainless-Lang: python",
    "X-Stainless-Package-Version: 2.8.1",
    "X-Stainless-OS: Linux",
    "X-Stainless-Arch: x64",
    "X-Stainless-Runtime: CPython",
    "X-Stainless-Runtime-Version: 3.11.9",
    "Authorization: Bearer sk-0123456789abcdef",
    "X-Stainless-Async: async:asyncio",
    "x-stainless-retry-count: 0",
    "x-stainless-read-timeout: 600",
)
_TURN_BYTES = 3_000  # of one message in a long history
_WORDS = 2_000


def chat_requests(url: str, body_bytes: int, order: str, *, sessions: int, seed: int) -> list[bytes]:
    """Whole HTTP requests, one a session, each about `body_bytes` long. `order` is what `upstream.py` is told to answer."""
    requests = []
    for body in _bodies(body_bytes, order.startswith("sse"), sessions, seed):
        host, length = f"Host: {url.removeprefix('http://')}", f"Content-Length: {len(body)}"
        lines = ("POST /v1/chat/completions HTTP/1.1", host, *_HEADERS, f"x-mock: {order}", length, "", "")
        requests.append("\r\n".join(lines).encode() + body)
    return requests


@cache
def _bodies(body_bytes: int, stream: bool, sessions: int, seed: int) -> tuple[bytes, ...]:
    """The system prompt takes a quarter; the rest are turns, of which each session has its own."""
    random = Random(seed)
    words = ["".join(random.choices(ascii_lowercase, k=random.randint(2, 9))) for _ in range(_WORDS)]
    system = _text(random, words, body_bytes // 4)
    bodies = []
    for _ in range(sessions):
        messages = [{"role": "system", "content": system}]
        for left in range(body_bytes - body_bytes // 4 - 120, 0, -_TURN_BYTES):
            role = "user" if len(messages) % 2 else "assistant"
            messages.append({"role": role, "content": _text(random, words, min(left, _TURN_BYTES))})
        bodies.append(json.dumps({"model": MODEL, "messages": messages, "stream": stream}).encode())
    return tuple(bodies)


def _text(random: Random, words: list[str], size: int) -> str:
    """Lines of ten words, `size` bytes in all."""
    drawn = random.choices(words, k=size // 3 + 1)
    return "\n".join(" ".join(drawn[start : start + 10]) for start in range(0, len(drawn), 10))[:size]

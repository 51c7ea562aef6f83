"""What an agent's SDK sends: chat requests of a given size, one for each of many sessions behind a shared system prompt."""

import json
from random import Random

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


def chat_requests(url: str, body_bytes: int, order: str, *, sessions: int, seed: int) -> list[bytes]:
    """Whole HTTP requests, one a session, each about `body_bytes` long. `order` is what `upstream.py` is told to answer."""
    random = Random(f"{seed}/{body_bytes}")
    system = _text(random, body_bytes // 4)
    host = url.removeprefix("http://")
    requests = []
    for _ in range(sessions):
        messages = [{"role": "system", "content": system}]
        left = body_bytes - body_bytes // 4 - 120
        while left > 0:
            role = "user" if len(messages) % 2 else "assistant"
            messages.append({"role": role, "content": _text(random, min(left, _TURN_BYTES))})
            left -= _TURN_BYTES
        body = json.dumps({"model": MODEL, "messages": messages, "stream": order.startswith("sse")}).encode()
        lines = ("POST /v1/chat/completions HTTP/1.1", f"Host: {host}", *_HEADERS, f"x-mock: {order}")
        requests.append("\r\n".join((*lines, f"Content-Length: {len(body)}", "", "")).encode() + body)
    return requests


def _text(random: Random, size: int) -> str:
    """Words of 2 to 9 letters in lines of about ten."""
    words = []
    while size > 0:
        word = "".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=min(size, random.randint(2, 9))))
        words.append(word)
        size -= len(word) + 1
    return "\n".join(" ".join(words[start : start + 10]) for start in range(0, len(words), 10))

"""Reads one streamed answer without decoding it: when the first content came, what the usage was, whether it ended
well.

A benchmark that decodes every chunk measures itself. Each chunk is only searched for a few byte patterns, and the
last kilobytes are kept; the usage is decoded once, from there.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import msgspec

_CONTENT = re.compile(rb'"(?:content|text|reasoning_content|reasoning|arguments)"\s*:\s*"[^"]')
_KEPT_BYTES = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens as the target counted them; None where it did not say."""

    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None


@dataclass(slots=True)
class StreamReader:
    """Feed it body bytes with the time they came; read the result when the body ends."""

    first_content_s: float | None = None
    chunks: int = 0
    broken: bool = False
    _tail: bytearray = field(default_factory=bytearray)

    def feed(self, data: bytes, now_s: float) -> None:
        self.chunks += 1
        if b'"error"' in data:
            self.broken = True
        self._tail += data
        if self.first_content_s is None and _CONTENT.search(self._tail):
            self.first_content_s = now_s
        if len(self._tail) > 2 * _KEPT_BYTES:
            del self._tail[:-_KEPT_BYTES]

    @property
    def complete(self) -> bool:
        """The stream said that it was over, as the protocol asks."""
        return b"[DONE]" in self._tail

    def usage(self) -> Usage:
        return read_usage(self._last_object(b'"usage"'))

    def error_code(self) -> str | None:
        """The code of an error sent inside the stream, or None."""
        return error_code(self._last_object(b'"error"')) if self.broken else None

    def _last_object(self, key: bytes) -> Any:
        for line in reversed(bytes(self._tail).split(b"\n")):
            if key in line and line.startswith(b"data:"):
                body = decode(line[5:].strip())
                if isinstance(body, dict) and body.get(key.strip(b'"').decode()):
                    return body
        return None


def decode(body: bytes) -> Any:
    """JSON, or None for anything else."""
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError:
        return None


def read_usage(body: Any) -> Usage:
    usage = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(usage, dict):
        return Usage()
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return Usage(
        prompt_tokens=_count(usage.get("prompt_tokens", usage.get("total_tokens"))),
        cached_tokens=_count(cached),
        output_tokens=_count(usage.get("completion_tokens")),
    )


def error_code(body: Any) -> str:
    """The most specific name an error body gives itself; a bare number is none."""
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        for key in ("code", "type"):
            name = error.get(key)
            if isinstance(name, str) and name and not name.isdigit():
                return name
    return "unknown_error"


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) else None

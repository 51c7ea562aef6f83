"""Token counts out of an engine's answer, without re-encoding it: the usage object of a body, or of a stream's last lines.

llama.cpp's server also sends `timings` with every answer, streams without `usage` included: what it computed of the prompt,
what it found cached, what it generated. They fill in what `usage` leaves out.
"""

from collections import deque
from dataclasses import dataclass
from typing import Annotated

import msgspec

from amf.engines.engine import EngineError
from amf.engines.http import NOT_JSON

_TAIL_BYTES = 64 * 1024


_Tokens = Annotated[int, msgspec.Meta(ge=0, le=10**9)]  # a usage with other numbers is none


class _Details(msgspec.Struct):
    cached_tokens: _Tokens | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: _Tokens | None = None
    completion_tokens: _Tokens | None = None
    total_tokens: _Tokens | None = None
    prompt_tokens_details: _Details | None = None


class _Timings(msgspec.Struct):
    """Of the choice that ended last. Older builds leave out `cache_n`."""

    cache_n: _Tokens
    prompt_n: _Tokens
    predicted_n: _Tokens


class _Answer(msgspec.Struct):
    usage: _Usage | None = None
    timings: msgspec.Raw = msgspec.Raw()  # whoever else uses the name may mean something else by it


_decode = msgspec.json.Decoder(_Answer).decode
_decode_timings = msgspec.json.Decoder(_Timings).decode


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """As the engine reports it. `cached_tokens` None: it does not say."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int | None


def usage_of(body: bytes) -> Usage | None:
    """None if the answer states none. Raises EngineError if the body is no JSON object."""
    try:
        answer = _decode(body)
    except msgspec.ValidationError:
        if body.lstrip()[:1] not in (b"{", b"["):
            raise EngineError("the engine answered with JSON that is no object") from None
        return None
    except NOT_JSON:
        raise EngineError("the engine answered with what is not JSON") from None
    return _usage(answer)


class StreamTail:
    """The end of an SSE stream: counts data lines as they pass and keeps the last 64 KiB for the usage in them."""

    def __init__(self) -> None:
        self.data_lines = 0
        self._chunks: deque[bytes] = deque()
        self._bytes = 0

    def feed(self, chunk: bytes) -> None:
        self.data_lines += chunk.count(b"data:")
        self._chunks.append(chunk)
        self._bytes += len(chunk)
        while self._bytes - len(self._chunks[0]) >= _TAIL_BYTES:
            self._bytes -= len(self._chunks.popleft())

    def complete(self) -> bool:
        """Whether the stream has said all, with `[DONE]` in its last bytes."""
        end = self._chunks[-1][-16:]
        if len(end) < 16 and len(self._chunks) > 1:
            end = self._end()[-16:]
        return end.rstrip().endswith(b"[DONE]")

    def usage(self) -> Usage | None:
        for line in reversed(self._end().split(b"\n")):
            if line.startswith(b"data:") and (b'"usage"' in line or b'"timings"' in line):
                try:
                    usage = _usage(_decode(line[5:].strip()))
                except NOT_JSON:
                    continue
                if usage is not None:
                    return usage
        return None

    def _end(self) -> bytes:
        return b"".join(self._chunks)


def _usage(answer: _Answer) -> Usage | None:
    usage, timings = answer.usage, _timings(answer)
    if usage is None or (usage.prompt_tokens is None and usage.total_tokens is None):
        return _usage_of_timings(timings) if timings is not None else None
    output = usage.completion_tokens or 0
    prompt = usage.prompt_tokens if usage.prompt_tokens is not None else max(0, (usage.total_tokens or 0) - output)
    cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details is not None else None
    if cached is None and timings is not None:
        cached = timings.cache_n
    return Usage(
        prompt_tokens=prompt,
        output_tokens=output,
        cached_tokens=None if cached is None else min(cached, prompt),
    )


def _timings(answer: _Answer) -> _Timings | None:
    try:
        return _decode_timings(answer.timings) if answer.timings else None
    except NOT_JSON:
        return None


def _usage_of_timings(timings: _Timings) -> Usage:
    return Usage(
        prompt_tokens=timings.cache_n + timings.prompt_n,
        output_tokens=timings.predicted_n,
        cached_tokens=timings.cache_n,
    )

"""Prompts that break the prefix they should share.

A prefix cache shares what is equal up to the first byte that differs. Where system prompts of one application differ by a
timestamp near their start, nothing behind it is ever shared between runs. System prompts that are equal but for their
volatile parts (volatile.py) are taken for one application's; the first part that has several values is where they break.

What it costs: when a value comes that was not seen before, with the same values before it, all bytes of that request from
there on are computed though they could have been warm. A time to the second costs that with every request, a date once a
day. An application's first request costs nothing. Bytes are counted, not tokens; four of them are about a token.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from xxhash import xxh3_64_hexdigest

from amf.doctor.volatile import BILLING, Part, parts_of

BYTES_PER_TOKEN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A part of a system prompt that had several values. `at_byte`: where, in the application's first request."""

    kind: str
    at_byte: int
    values: int
    wasted_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Break:
    """Of one application, known by a hash of its system prompt without its volatile parts. Sizes are those of its first
    system prompt, and of all its prompts. `places` in the order of the text."""

    application: str
    requests: int
    places: tuple[Place, ...]
    system_bytes: int
    prompt_bytes: int

    @property
    def worst(self) -> Place:
        """Where most is lost."""
        return max(self.places, key=lambda place: place.wasted_bytes)

    @property
    def wasted_bytes(self) -> int:
        return sum(place.wasted_bytes for place in self.places)


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """`billing`: requests that begin with Claude Code's billing line, whether or not it differed among them."""

    requests: int
    without_system: int
    applications: int
    billing: int
    breaks: tuple[Break, ...]


@dataclass(slots=True)
class _Application:
    """Volatile parts and prompt bytes of each request, in order."""

    system_bytes: int
    requests: list[tuple[list[Part], int]] = field(default_factory=list)


def survey(bodies: Iterable[dict[str, Any]]) -> Survey:
    """Of chat request bodies, in the order in which they were sent."""
    applications: dict[str, _Application] = {}
    requests = silent = billing = 0
    for body in bodies:
        requests += 1
        system, prompt_bytes = system_of(body)
        if not system:
            silent += 1
            continue
        masked, parts = parts_of(system)
        billing += bool(parts) and parts[0].kind == BILLING
        key = xxh3_64_hexdigest(repr(body.get("model")).encode() + b"\x1f" + masked)
        applications.setdefault(key, _Application(len(system))).requests.append((parts, prompt_bytes))
    found = [found for key, each in applications.items() if (found := _break_of(key, each)) is not None]
    found.sort(key=lambda each: -each.wasted_bytes)
    return Survey(
        requests=requests,
        without_system=silent,
        applications=len(applications),
        billing=billing,
        breaks=tuple(found),
    )


def _break_of(key: str, application: _Application) -> Break | None:
    first = application.requests[0][0]
    values = [len({parts[place].value for parts, _ in application.requests}) for place in range(len(first))]
    places = [place for place, count in enumerate(values) if count > 1]
    if not places:
        return None
    wasted = _wasted(application, places)
    return Break(
        application=key,
        requests=len(application.requests),
        places=tuple(
            Place(
                kind=first[place].kind,
                at_byte=first[place].start,
                values=values[place],
                wasted_bytes=wasted[place],
            )
            for place in places
        ),
        system_bytes=application.system_bytes,
        prompt_bytes=sum(prompt_bytes for _, prompt_bytes in application.requests),
    )


def _wasted(application: _Application, places: list[int]) -> dict[int, int]:
    """By place: the bytes behind it, of requests whose values were known up to it and not with it."""
    wasted = dict.fromkeys(places, 0)
    known: set[tuple[bytes, ...]] = set()
    for number, (parts, prompt_bytes) in enumerate(application.requests):
        values = tuple(parts[place].value for place in places)
        new = next((length for length in range(1, len(values) + 1) if values[:length] not in known), None)
        if number and new is not None:
            wasted[places[new - 1]] += prompt_bytes - parts[places[new - 1]].start
        known.update(values[:length] for length in range(1, len(values) + 1))
    return wasted


def system_of(body: dict[str, Any]) -> tuple[bytes, int]:
    """The system prompt that opens a request, in OpenAI's form or Anthropic's, and the bytes of the whole prompt."""
    messages = body.get("messages")
    messages = [each for each in messages if isinstance(each, dict)] if isinstance(messages, list) else []
    opening = [_text(body.get("system"))]
    rest = 0
    for message in messages:
        text = _text(message.get("content"))
        if rest == 0 and message.get("role") in ("system", "developer"):
            opening.append(text)
        else:
            rest += len(text) + 1
    system = b"\n".join(text for text in opening if text)
    return system, len(system) + rest


def _text(content: Any) -> bytes:
    """Of a message's content: a text, or parts with texts."""
    if isinstance(content, str):
        return content.encode("utf-8", "surrogatepass")
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else part for part in content]
        return b"\n".join(text.encode("utf-8", "surrogatepass") for text in texts if isinstance(text, str))
    return b""

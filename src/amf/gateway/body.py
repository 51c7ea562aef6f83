"""A request body: read once, typed only where the fabric looks, forwarded byte for byte.

The typed decode names the fields below and skips the rest, so unknown fields cost nothing and reach the engine untouched.
Only a body that carries `amf` (or engine control a client may not set) is written anew, without those fields; every
other value keeps its bytes, because the second decode stops at the top level.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from amf.gateway.problem import bad_request

T = TypeVar("T")

_ABSENT = msgspec.Raw()

Text = str | list[str | int | list[int]] | None  # a text, several, token ids, or several lists of token ids


class Message(msgspec.Struct):
    role: str = ""
    content: str | list[msgspec.Raw] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: msgspec.Raw = _ABSENT


class Part(msgspec.Struct):
    """One part of a message's content; only text is looked into."""

    type: str = ""
    text: str | None = None


class BranchForm(msgspec.Struct, forbid_unknown_fields=True):
    """The alternative that a call belongs to, and what its group is. `group` is a path."""

    group: str
    alternative: str
    kind: str = ""
    k: int = 1
    probability: float | None = None


class AlternativeForm(msgspec.Struct, forbid_unknown_fields=True):
    """One alternative of a group, or several."""

    group: str
    alternative: str | list[str]


class DecisionForm(msgspec.Struct, forbid_unknown_fields=True):
    """The body of the commit route."""

    group: str
    commit: str | list[str] | None = None
    discard: str | list[str] | None = None


Alternatives = str | AlternativeForm | list[str | AlternativeForm] | None


class Amf(msgspec.Struct, forbid_unknown_fields=True):
    """The body's `amf` object: the explicit identity, named as in docs/wire.md. `parents` is a list or `a|b`."""

    pipeline: str | None = None
    run_id: str | None = None
    session_id: str | None = None
    hop: str | None = None
    parents: str | list[str] | None = None
    branch: str | BranchForm | None = None
    commit: Alternatives = None
    discard: Alternatives = None
    deadline_ms: float | None = None
    slo_class: str | None = None
    final: bool | None = None


class Body(msgspec.Struct):
    model: str | None = None
    messages: list[Message] | None = None
    prompt: Text = None
    input: Text = None
    query: str | None = None
    documents: list[msgspec.Raw] | None = None
    tools: msgspec.Raw = _ABSENT
    stream: bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    cache_salt: str | None = None
    service_tier: Any = None
    metadata: Any = None
    session_id: Any = None
    conversation: Any = None
    prompt_cache_key: Any = None
    amf: Amf | msgspec.UnsetType | None = msgspec.UNSET
    priority: msgspec.Raw = _ABSENT
    nvext: msgspec.Raw = _ABSENT

    @property
    def max_output_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


_decode_body = msgspec.json.Decoder(Body).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_part = msgspec.json.Decoder(Part).decode
_ENGINE_CONTROL = ("priority", "nvext")


def parse_body(raw: bytes) -> Body:
    """Raises Problem (400) that says what is wrong and where."""
    return read_json(raw, _decode_body)


def read_json(raw: bytes, decode: Callable[[bytes], T]) -> T:
    """`raw` through a msgspec decoder. Raises Problem (400) that says what is wrong and where."""
    if not raw:
        raise bad_request("The request has no body: send a JSON object.", code="invalid_json")
    try:
        if not raw.isascii():
            raw.decode()
        return decode(raw)
    except UnicodeDecodeError as error:
        raise bad_request(
            f"The body is not valid UTF-8 at byte {error.start}: encode it as UTF-8.", code="invalid_utf8"
        ) from error
    except msgspec.ValidationError as error:
        raise bad_request(f"The body has a field of the wrong kind: {error}.", code="invalid_field") from error
    except msgspec.DecodeError as error:
        raise bad_request(f"The body is not valid JSON: {error}.", code="invalid_json") from error
    except RecursionError as error:
        raise bad_request("The body is nested too deeply: flatten it.", code="invalid_json") from error


def outgoing(raw: bytes, body: Body, *, trusted: bool) -> bytes:
    """The bytes to forward: the very same ones unless something must be taken out. `trusted` keys keep engine control."""
    drop = set() if body.amf is msgspec.UNSET else {"amf"}
    if not trusted:
        drop.update(name for name in _ENGINE_CONTROL if bytes(getattr(body, name)))
    if not drop:
        return raw
    fields = _decode_fields(raw)
    return msgspec.json.encode({name: value for name, value in fields.items() if name not in drop})


def part_text(part: msgspec.Raw) -> bytes:
    """A text part's text; any other part (an image, audio) as it was written."""
    try:
        parsed = _decode_part(part)
    except msgspec.ValidationError:
        return bytes(part)
    return parsed.text.encode() if parsed.text is not None else bytes(part)

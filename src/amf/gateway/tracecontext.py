"""W3C `traceparent` and `baggage`, read leniently: what is malformed is ignored, as the recommendations ask."""

import re
from urllib.parse import unquote

_TRACEPARENT = re.compile(r"^([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?$")
_MAX_BAGGAGE_BYTES = 8192


def trace_id(traceparent: str) -> str | None:
    """The trace id, or None if the header is malformed. Flags are a bit mask: any two hex digits are legal.

    Version `ff` is forbidden, version `00` has exactly four fields, later versions may append more.
    """
    match = _TRACEPARENT.match(traceparent.strip())
    if match is None:
        return None
    version, trace, parent, _flags, more = match.groups()
    if version == "ff" or (version == "00" and more) or not trace.strip("0") or not parent.strip("0"):
        return None
    return trace


def baggage(header: str) -> dict[str, str]:
    """Members of a `baggage` header, percent-decoded, properties dropped; the first of two equal keys wins."""
    members: dict[str, str] = {}
    if len(header) > _MAX_BAGGAGE_BYTES:
        return members
    for member in header.split(","):
        pair = member.split(";", 1)[0]
        key, equals, value = pair.partition("=")
        if equals and key.strip():
            members.setdefault(key.strip(), unquote(value.strip()))
    return members

"""What an adapter adds to a request's body, for engines that take their levers there and not in headers.

The body is the client's and is passed on byte for byte; members are put in behind its last one, so nothing is decoded and
nothing else changes. Of a name that the body has already, the engines' JSON readers take the later value.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

_SPACE = b" \t\r\n"


def with_members(body: bytes, members: Mapping[str, Any]) -> bytes:
    """The JSON object `body` with `members`; as it is where it does not end like an object, which the engine will refuse."""
    whole = body.rstrip(_SPACE)
    if not members or not whole.endswith(b"}") or not whole.lstrip(_SPACE).startswith(b"{"):
        return body
    inner = whole[:-1].rstrip(_SPACE)
    comma = b"" if inner.endswith(b"{") and not inner[:-1].strip(_SPACE) else b","
    return b"".join((inner, comma, msgspec.json.encode(dict(members))[1:]))

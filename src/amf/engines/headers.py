"""Which headers cross the border to an engine and back.

Towards the engine go the client's own headers without those that belong to the hop between client and gateway, and
without those by which engines and other gateways are controlled: only the adapter may set these. The engine must not
compress, since the gateway reads the usage numbers in the stream that it forwards.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import quote

from multidict import CIMultiDict

HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
GATEWAY_OWN = frozenset({"host", "content-length", "accept-encoding", "expect", "cookie"})
ENGINE_CONTROL = frozenset({"x-data-parallel-rank", "x-session-id", "x-request-id"})
ENGINE_CONTROL_PREFIXES = ("x-vllm-", "x-dynamo-", "x-gateway-", "x-llm-d-", "x-smg-", "x-override-", "x-amf-")
CREDENTIALS = frozenset({"authorization", "x-api-key", "api-key"})
MAX_IDENTIFIER_CHARS = 512

_NEVER_SENT = HOP_BY_HOP | GATEWAY_OWN | ENGINE_CONTROL
_PLAIN = re.compile(r"[A-Za-z0-9_.\-~!#$&'()*+,/:;=?@\[\] |]*")  # characters that `identifier` leaves as they are


def request_headers(headers: Mapping[str, str], api_key: str | None) -> CIMultiDict[str]:
    """The client's headers as the engine may see them. An `api_key` takes the place of the client's credentials."""
    sent = CIMultiDict([item for item in headers.items() if _may_be_sent(item[0])])
    for name in _connection_options(headers) if api_key is None else _connection_options(headers) | CREDENTIALS:
        sent.popall(name, None)
    sent["Accept-Encoding"] = "identity"
    sent.setdefault("Content-Type", "application/json")
    if api_key is not None:
        sent["Authorization"] = f"Bearer {api_key.strip()}"
    return sent


def response_headers(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """The engine's headers without those of its own hop. Lookup ignores case."""
    dropped = HOP_BY_HOP | _connection_options(headers)
    return CIMultiDict([item for item in headers.items() if item[0].lower() not in dropped])


def identifier(value: str) -> str:
    """An id as a header value: what a header cannot carry is percent-encoded, and what is too long is cut."""
    if not _PLAIN.fullmatch(value):
        value = quote(value, safe="!#$&'()*+,/:;=?@[]~ |", errors="replace")
    return value[:MAX_IDENTIFIER_CHARS].strip()


@lru_cache(maxsize=1024)
def _may_be_sent(name: str) -> bool:
    lowered = name.lower()
    return lowered not in _NEVER_SENT and not lowered.startswith(ENGINE_CONTROL_PREFIXES)


def _connection_options(headers: Mapping[str, str]) -> frozenset[str]:
    options = headers.get("Connection") or headers.get("connection") or ""
    return frozenset(option.strip().lower() for option in options.split(",")) if options else frozenset()

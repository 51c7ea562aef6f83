"""Parts of a text that change from call to call: times, ids, counters. What they are, where, and the text without them.

Two texts that are equal without them are one text to their author, and two to a prefix cache.
"""

import re
from dataclasses import dataclass

BILLING = "billing line"

_MONTH = (
    rb"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sep(?:t(?:ember)?)?|Oct(?:ober)?"
    rb"|Nov(?:ember)?|Dec(?:ember)?)\b\.?"
)
_DAY = rb"(?:Mon|Tues?|Wed(?:nes)?|Thu(?:rs)?|Fri|Sat(?:ur)?|Sun)(?:day)?\b"
_CLOCK = rb"\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?(?: ?[AaPp]\.?[Mm]\b\.?)?"
# In the order in which they are tried at each place. Claude Code puts its version into a first line of its own.
_KINDS: tuple[tuple[str, bytes], ...] = (
    (BILLING, rb"\Ax-anthropic-billing-header:[^\n]*"),
    ("uuid", rb"\b[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}\b"),
    ("time", rb"\b\d{4}[-/]\d{1,2}[-/]\d{1,2}(?:[T ]" + _CLOCK + rb"(?:Z\b|[+-]\d{2}:?\d{2}\b)?)?"),
    ("time", rb"\b\d{1,2}[-/.]\d{1,2}[-/.](?:19|20)\d{2}\b"),
    ("time", rb"\b(?:" + _DAY + rb",? )?(?:" + _MONTH + rb" \d{1,2}|\d{1,2}\.? " + _MONTH + rb")(?:,? \d{4})?\b"),
    ("time", rb"\b" + _DAY + rb"\b"),
    ("time", rb"\b" + _CLOCK),
    ("id", rb"\b(?=[A-Za-z_-]*\d)[0-9A-Za-z][0-9A-Za-z_-]{7,}\b"),
    ("number", rb"\d+"),
)
_VOLATILE = re.compile(b"|".join(b"(" + pattern + b")" for _, pattern in _KINDS))
_STAND_IN = b"\xff"  # never in UTF-8


@dataclass(frozen=True, slots=True)
class Part:
    """Where it begins, in bytes, what kind it is, and its value."""

    start: int
    kind: str
    value: bytes


def parts_of(text: bytes) -> tuple[bytes, list[Part]]:
    """The text with a stand-in for each volatile part, and the parts in order."""
    parts: list[Part] = []

    def replaced(match: re.Match[bytes]) -> bytes:
        assert match.lastindex is not None
        parts.append(Part(match.start(), _KINDS[match.lastindex - 1][0], match[0]))
        return _STAND_IN

    return _VOLATILE.sub(replaced, text), parts

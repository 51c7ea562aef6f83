"""How far another machine's clock is from ours, as far as its HTTP `Date` tells: whole seconds, cut off, and in servers that
make it once a second (uvicorn, and so vLLM) up to a second old.

So a `Date` of D was true somewhere in [D, D + 2) of the other clock, at a moment between our sending and our receiving: the
other clock is ahead by more than D - received and by less than D + 2 - sent. Nothing finer can be known from it.
"""

from datetime import UTC
from email.utils import parsedate_to_datetime

from amf.doctor.findings import Finding, ok, skip, warn
from amf.doctor.patient import Reply

_DATE_S = 2.0  # between the moment that a Date names and its sending: 1 s cut off, 1 s old
_ALARM_S = 1.0  # of what must be skew, beyond what the resolution leaves open
_FIX = "run NTP (chrony) on both machines; times in logs and KV events cannot be compared until then"


def clock(reply: Reply) -> Finding:
    """The finding of one answer."""
    date = reply.headers.get("Date")
    try:
        when = parsedate_to_datetime(date) if date else None
    except ValueError:
        when = None
    if when is None:
        return skip("clock", "its answers carry no usable Date, so its clock cannot be seen")
    date_s = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    low_s, high_s = ahead_s(date_s, reply.sent_s, reply.got_s)
    if low_s > _ALARM_S or high_s < -_ALARM_S:
        nearest_s = low_s if low_s > 0 else high_s
        return warn(
            "clock", f"{abs(nearest_s):.1f} s or more {'ahead of' if nearest_s > 0 else 'behind'} this machine", _FIX
        )
    return ok("clock", f"between {low_s:+.1f} and {high_s:+.1f} s of this machine; HTTP dates tell whole seconds")


def ahead_s(date_s: float, sent_s: float, got_s: float) -> tuple[float, float]:
    """Bounds of how far the other clock is ahead, seconds; below 0: behind."""
    return date_s - got_s, date_s + _DATE_S - sent_s

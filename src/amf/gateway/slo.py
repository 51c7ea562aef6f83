"""What a request says of time: the run's deadline, its class, and what other tools' headers ask of this one request.

Two kinds of words must not be mixed. A *deadline* is of the whole pipeline: only `x-amf-deadline-ms` (and its forms in the
body) states one. A *timeout* is of one request: proxies and clients set it on every call, mostly without anybody having
chosen it, so an agent of forty calls behind a proxy with 15 s has no SLO of 15 s. It bounds the call it came with. Reading
is pure; a value that cannot be read is the client's error and names its field.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from amf.core.types import SloClass
from amf.gateway.problem import Problem, bad_request

TIMEOUT_HEADERS_MS = {  # besides grpc-timeout: what one unit is in milliseconds
    "x-envoy-expected-rq-timeout-ms": 1.0,
    "x-litellm-timeout": 1000.0,
    "x-tfy-request-timeout": 1.0,
}
TTFT_HEADER = "x-slo-ttft-ms"
SLO_HEADERS = frozenset({"grpc-timeout", TTFT_HEADER, *TIMEOUT_HEADERS_MS})
SERVICE_TIERS: dict[str, SloClass | None] = {
    "priority": SloClass.INTERACTIVE,
    "fast": SloClass.INTERACTIVE,
    "scale": SloClass.INTERACTIVE,
    "flex": SloClass.THROUGHPUT,
    "batch": SloClass.BACKGROUND,
    "auto": None,
    "default": None,
    "standard": None,
    "standard_only": None,
}
_GRPC_UNIT_MS = {"H": 3_600_000.0, "M": 60_000.0, "S": 1000.0, "m": 1.0, "u": 1e-3, "n": 1e-6}
_GRPC_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])")
_DECIMAL = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,9})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """Real milliseconds from the request's arrival; None: not said. `timeout_source` names the header that said it."""

    deadline_ms: float | None = None
    slo_class: SloClass | None = None
    timeout_ms: float | None = None
    timeout_source: str = ""
    ttft_ms: float | None = None


NO_WISHES = Wishes()


def read_wishes(said: Mapping[str, str], headers: Mapping[str, str], service_tier: Any) -> Wishes:
    """`said`: the explicit fields; `headers` by their names in lower case. Raises Problem (400) for what cannot be read, (504)
    for a timeout that has already passed."""
    timeout_ms, source = _timeout(headers)
    if timeout_ms is not None and timeout_ms <= 0:
        raise expired(f"`{source}` leaves no time")
    return Wishes(
        deadline_ms=_deadline_ms(said.get("deadline_ms")),
        slo_class=slo_class(said.get("slo_class"), service_tier),
        timeout_ms=timeout_ms,
        timeout_source=source,
        ttft_ms=_ttft_ms(headers.get(TTFT_HEADER)),
    )


def slo_class(said: str | None, service_tier: Any) -> SloClass | None:
    """The explicit class, else what OpenAI's `service_tier` means. Raises Problem (400) if either is none that is known."""
    tier = _class_of_tier(service_tier)
    if said is None:
        return tier
    try:
        return SloClass(said.lower())
    except ValueError:
        known = ", ".join(sorted(SloClass))
        raise bad_request(
            f"`x-amf-slo-class` is `{said[:40]}`: use one of {known}.",
            code="invalid_slo_class",
            param="x-amf-slo-class",
        ) from None


def grpc_timeout_ms(text: str) -> float | None:
    """gRPC's form: up to eight digits and one of H, M, S, m (milli-), u (micro-) and n (nanoseconds). None: not that form."""
    match = _GRPC_TIMEOUT.fullmatch(text)
    return int(match.group(1)) * _GRPC_UNIT_MS[match.group(2)] if match else None


def expired(why: str = "The deadline has passed") -> Problem:
    return Problem(504, "deadline_exceeded", f"{why}: the call was not started.", type="timeout_error", retry=False)


def _class_of_tier(tier: Any) -> SloClass | None:
    if tier is None:
        return None
    if not isinstance(tier, str) or tier.lower() not in SERVICE_TIERS:
        known = ", ".join(SERVICE_TIERS)
        raise bad_request(
            f"`service_tier` is `{str(tier)[:40]}`: use one of {known}.",
            code="invalid_service_tier",
            param="service_tier",
        )
    return SERVICE_TIERS[tier.lower()]


def _deadline_ms(said: str | None) -> float | None:
    if said is None:
        return None
    try:
        value = float(said)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise _bad_time("x-amf-deadline-ms", said, "the milliseconds that remain, a number above 0")
    return value


def _timeout(headers: Mapping[str, str]) -> tuple[float | None, str]:
    """The tightest of the timeouts that are sent, and the header it is from."""
    found: list[tuple[float, str]] = []
    if not headers:
        return None, ""
    if "grpc-timeout" in headers:
        text = headers["grpc-timeout"].strip()
        value_ms = grpc_timeout_ms(text)
        if value_ms is None:
            raise _bad_time("grpc-timeout", text, "up to 8 digits and a unit of H, M, S, m, u or n, as `250m`")
        found.append((value_ms, "grpc-timeout"))
    for name, unit_ms in TIMEOUT_HEADERS_MS.items():
        if name in headers:
            unit = "seconds" if unit_ms > 1 else "milliseconds"
            found.append((_number(name, headers[name], f"{unit}, a plain number") * unit_ms, name))
    return min(found, default=(None, ""))


def _ttft_ms(text: str | None) -> float | None:
    if text is None:
        return None
    form = "milliseconds to the first token, a plain number above 0"
    value = _number(TTFT_HEADER, text, form)
    if value <= 0:
        raise _bad_time(TTFT_HEADER, text, form)
    return value


def _number(name: str, text: str, form: str) -> float:
    if not _DECIMAL.fullmatch(text.strip()):
        raise _bad_time(name, text, form)
    return float(text)


def _bad_time(name: str, text: str, form: str) -> Problem:
    return bad_request(f"`{name}` is `{text[:40]}`: send {form}.", code="invalid_deadline", param=name)

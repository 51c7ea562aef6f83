"""What a request says of time: each source, its form, and what is turned away."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from amf.core.types import SloClass
from amf.gateway.body import parse_body
from amf.gateway.identity import read_identity
from amf.gateway.problem import Problem
from amf.gateway.slo import Wishes, grpc_timeout_ms

NANOSECONDS = {"H": 3600 * 10**9, "M": 60 * 10**9, "S": 10**9, "m": 10**6, "u": 10**3, "n": 1}


def read(headers: dict[str, str] | None = None, **body: object) -> Wishes:
    return read_identity(CIMultiDict(headers or {}), parse_body(msgspec.json.encode({"model": "m", **body}))).wishes


@pytest.mark.parametrize(
    ("headers", "timeout_ms", "source"),
    [
        ({"grpc-timeout": "250m"}, 250.0, "grpc-timeout"),
        ({"Grpc-Timeout": "2S"}, 2000.0, "grpc-timeout"),
        ({"x-envoy-expected-rq-timeout-ms": "900"}, 900.0, "x-envoy-expected-rq-timeout-ms"),
        ({"x-litellm-timeout": "1.5"}, 1500.0, "x-litellm-timeout"),
        ({"x-tfy-request-timeout": " 800 "}, 800.0, "x-tfy-request-timeout"),
        ({"grpc-timeout": "2S", "x-litellm-timeout": "1"}, 1000.0, "x-litellm-timeout"),
        ({"grpc-timeout": "1S", "x-litellm-timeout": "2"}, 1000.0, "grpc-timeout"),
        ({"x-stainless-timeout": "600", "x-stainless-read-timeout": "600"}, None, ""),
        ({"x-slo-tpot-ms": "50", "prefer": "wait=10", "x-request-deadline": "5"}, None, ""),
    ],
)
def test_timeouts_of_a_request_are_no_deadlines(headers: dict[str, str], timeout_ms: float | None, source: str) -> None:
    assert read(headers) == Wishes(timeout_ms=timeout_ms, timeout_source=source)


def test_all_that_can_be_said_at_once() -> None:
    wishes = read({"x-amf-deadline-ms": "70", "x-slo-ttft-ms": "40.5", "grpc-timeout": "2S"}, service_tier="batch")
    assert wishes == Wishes(
        deadline_ms=70.0,
        slo_class=SloClass.BACKGROUND,
        timeout_ms=2000.0,
        timeout_source="grpc-timeout",
        ttft_ms=40.5,
    )


@pytest.mark.parametrize(
    ("tier", "slo_class"),
    [
        ("priority", SloClass.INTERACTIVE),
        ("fast", SloClass.INTERACTIVE),
        ("scale", SloClass.INTERACTIVE),
        ("flex", SloClass.THROUGHPUT),
        ("Batch", SloClass.BACKGROUND),
        ("auto", None),
        ("default", None),
        ("standard_only", None),
        (None, None),
    ],
)
def test_service_tier_is_a_class_or_says_nothing(tier: str | None, slo_class: SloClass | None) -> None:
    assert read(service_tier=tier).slo_class is slo_class
    assert read({"x-amf-slo-class": "Throughput"}, service_tier=tier).slo_class is SloClass.THROUGHPUT


@pytest.mark.parametrize(
    ("headers", "body", "code", "param", "form"),
    [
        ({"grpc-timeout": "1x"}, {}, "invalid_deadline", "grpc-timeout", "8 digits"),
        ({"grpc-timeout": "123456789S"}, {}, "invalid_deadline", "grpc-timeout", "8 digits"),
        ({"x-litellm-timeout": "never"}, {}, "invalid_deadline", "x-litellm-timeout", "seconds"),
        ({"x-envoy-expected-rq-timeout-ms": "nan"}, {}, "invalid_deadline", "x-envoy-expected-rq-timeout-ms", "milli"),
        ({"x-tfy-request-timeout": "1e3"}, {}, "invalid_deadline", "x-tfy-request-timeout", "milliseconds"),
        ({"x-slo-ttft-ms": "0"}, {}, "invalid_deadline", "x-slo-ttft-ms", "above 0"),
        ({"x-slo-ttft-ms": "soon"}, {}, "invalid_deadline", "x-slo-ttft-ms", "above 0"),
        ({"x-amf-deadline-ms": "4s"}, {}, "invalid_deadline", "x-amf-deadline-ms", "above 0"),
        ({"x-amf-slo-class": "urgent"}, {}, "invalid_slo_class", "x-amf-slo-class", "interactive"),
        ({"x-amf-slo-class": "interactive"}, {"service_tier": 5}, "invalid_service_tier", "service_tier", "flex"),
        ({}, {"service_tier": "flexx"}, "invalid_service_tier", "service_tier", "flex"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_form(
    headers: dict[str, str], body: dict[str, object], code: str, param: str, form: str
) -> None:
    with pytest.raises(Problem) as caught:
        read(headers, **body)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, code, param)
    assert f"`{param}`" in caught.value.message and form in caught.value.message


@pytest.mark.parametrize("headers", [{"grpc-timeout": "0m"}, {"x-envoy-expected-rq-timeout-ms": "-12"}])
def test_a_timeout_used_up_before_us_has_passed(headers: dict[str, str]) -> None:
    with pytest.raises(Problem) as caught:
        read(headers)
    assert (caught.value.status, caught.value.code) == (504, "deadline_exceeded")
    assert caught.value.headers()["x-should-retry"] == "false"


@given(st.integers(0, 99_999_999), st.sampled_from("HMSmun"), st.integers(0, 8))
def test_grpc_timeouts_are_read_exactly(value: int, unit: str, width: int) -> None:
    milliseconds = grpc_timeout_ms(str(value).zfill(width) + unit)
    assert milliseconds == pytest.approx(value * NANOSECONDS[unit] / 10**6, rel=1e-12)


@given(st.text(max_size=12) | st.from_regex(r"\s?[-+]?\d{0,10}[A-Za-z]?\n?", fullmatch=True))
def test_nothing_else_is_a_grpc_timeout(text: str) -> None:
    digits, unit = text[:-1], text[-1:]
    is_one = 1 <= len(digits) <= 8 and digits.isascii() and digits.isdigit() and unit in NANOSECONDS
    assert (grpc_timeout_ms(text) is not None) == is_one

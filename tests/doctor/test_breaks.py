"""Prompts that break their prefix: what counts as volatile, where it breaks, what that costs."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amf.doctor.breaks import survey, system_of
from amf.doctor.volatile import parts_of

RULES = "You are a careful engineer. Follow the rules of the house. " * 20


def request(system: str, *contents: str, **fields: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": text} for text in contents or ("hi",)]
    return {"model": "m", "messages": [{"role": "system", "content": system}, *turns], **fields}


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("2026-11-26", "time"),
        ("2026-11-26T04:19:03Z", "time"),
        ("2026-11-26 04:19:03.123+02:00", "time"),
        ("26.11.2026", "time"),
        ("Thursday, November 26, 2026", "time"),
        ("26 Nov 2026", "time"),
        ("9:05 AM", "time"),
        ("Friday", "time"),
        ("6f1c2f0e-3b7a-4d55-9a0b-0c1d2e3f4a5b", "uuid"),
        ("req_8f2c11ab90", "id"),
        ("deadbeef0123", "id"),
        ("1732593543", "id"),
        ("42", "number"),
    ],
)
def test_what_is_volatile(text: str, kind: str) -> None:
    masked, parts = parts_of(f"it is {text} now".encode())
    assert [(part.start, part.kind, part.value) for part in parts] == [(6, kind, text.encode())]
    assert masked == b"it is \xff now"


@pytest.mark.parametrize(
    "text", ["careful engineer", "well-known", "Sunlight on Mars", "Monitor Mark", "the second of them", "naïve — 東京"]
)
def test_words_are_not(text: str) -> None:
    assert parts_of(text.encode())[1] == []


def test_the_billing_line_counts_where_it_stands_first() -> None:
    line = "x-anthropic-billing-header: cc_version=2.1.330.af3; cc_entrypoint=cli;"
    _, parts = parts_of(f"{line}\nYou are Claude Code".encode())
    assert [(part.start, part.kind, part.value.decode()) for part in parts] == [(0, "billing line", line)]
    assert parts_of(f"You say: {line}".encode())[1][0].kind != "billing line"


def test_a_time_near_the_start_costs_every_request() -> None:
    head = "You help. The time is "
    bodies = [request(f"{head}2026-11-26T04:19:{second:02}Z. {RULES}") for second in range(10)]
    found = survey(bodies)
    assert (found.requests, found.applications, found.without_system, found.billing) == (10, 1, 0, 0)
    (broken,) = found.breaks
    (place,) = broken.places
    assert (place.kind, place.at_byte, place.values) == ("time", len(head), 10)
    whole = len(head) + 20 + 2 + len(RULES) + 3  # "hi" and a message's end
    assert broken.prompt_bytes == 10 * whole
    assert broken.wasted_bytes == 9 * (whole - len(head))


def test_a_date_costs_once_a_day() -> None:
    bodies = [request(f"Today is 2026-11-{day}. {RULES}") for day in (25, 25, 25, 26, 26, 26)]
    (broken,) = survey(bodies).breaks
    assert broken.places[0].values == 2
    assert broken.wasted_bytes == broken.prompt_bytes // 6 - len("Today is ")


def test_the_costly_place_is_the_worst_not_the_first() -> None:
    bodies = [
        request(f"Today is 2026-11-{25 + number // 5}. Session run-{number:08}x. {RULES}") for number in range(10)
    ]
    (broken,) = survey(bodies).breaks
    assert [(place.kind, place.values) for place in broken.places] == [("time", 2), ("id", 10)]
    assert broken.worst.kind == "id"
    assert broken.places[0].wasted_bytes == broken.prompt_bytes // 10 - len("Today is ")  # the first of the second day


def test_equal_prompts_and_equal_numbers_break_nothing() -> None:
    bodies = [request(f"You are agent 7 of 2026. {RULES}", text) for text in ("a", "b", "c")]
    assert survey(bodies).breaks == ()


def test_other_applications_are_not_mixed_up() -> None:
    """Other words, or another model, make another application."""
    bodies = [
        request("Plan at 10:15. " + RULES),
        request("Code at 10:16. " + RULES),
        request("Plan at 10:17. " + RULES, model="n"),
    ]
    found = survey(bodies)
    assert found.applications == 3 and found.breaks == ()


def test_the_opening_system_prompt_in_both_forms() -> None:
    openai = {
        "messages": [
            {"role": "system", "content": "a"},
            {"role": "developer", "content": [{"type": "text", "text": "b"}]},
        ]
    }
    anthropic = {"system": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "messages": []}
    assert system_of(openai)[0] == system_of(anthropic)[0] == b"a\nb"
    late = {"messages": [{"role": "user", "content": "hi"}, {"role": "system", "content": "not the opening"}]}
    assert system_of(late)[0] == b""
    assert survey([late]).without_system == 1


VALUES = st.lists(st.integers(0, 3), min_size=1, max_size=12)


@given(VALUES, VALUES)
def test_what_is_wasted_is_what_an_endless_cache_could_not_share(firsts: Sequence[int], seconds: Sequence[int]) -> None:
    """Against a cache of all prefixes that ever were, byte by byte: of each request, what it does not share with any before
    it, though it shares all of it but for the numbers."""
    bodies = [request(f"one {a} two {b} three") for a, b in zip(firsts, seconds, strict=False)]
    whole = [system_of(body)[0] + b"hi\n" for body in bodies]
    cold = 0
    for number, text in enumerate(whole):
        shared = [_common(text, earlier) for earlier in whole[:number]]
        cold += len(text) - max(shared) if shared else 0
    assert sum(broken.wasted_bytes for broken in survey(bodies).breaks) == cold


def _common(one: bytes, other: bytes) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@given(st.lists(st.text(max_size=40), max_size=6))
def test_any_text_can_be_surveyed(systems: list[str]) -> None:
    found = survey([request(system) for system in systems])
    assert found.requests == len(systems)
    assert all(0 <= broken.wasted_bytes < broken.prompt_bytes for broken in found.breaks)

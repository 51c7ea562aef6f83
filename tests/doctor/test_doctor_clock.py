"""What an HTTP date tells of another clock."""

from email.utils import formatdate
from typing import Any

import pytest

from amf.doctor.clock import ahead_s, clock
from amf.doctor.patient import Reply

NOW_S = 1_800_000_000.25


def reply(date: str | None, sent_s: float = NOW_S, got_s: float = NOW_S + 0.1) -> Reply:
    headers: dict[str, Any] = {} if date is None else {"Date": date}
    return Reply(status=200, headers=headers, body=b"", sent_s=sent_s, got_s=got_s)


def test_the_bounds_hold_the_truth_whatever_was_cut_off_and_however_old_it_is() -> None:
    for skew_s in (-3.7, -0.4, 0.0, 0.6, 5.0):
        for fraction in (0.0, 0.3, 0.99):
            for age_s in (0.0, 0.5, 0.99):  # of a Date that is made once a second
                written_s = NOW_S + fraction * 0.1 - age_s  # on our clock
                low_s, high_s = ahead_s(float(int(written_s + skew_s)), NOW_S, NOW_S + 0.1)
                assert low_s <= skew_s < high_s and high_s - low_s == pytest.approx(2.1)


@pytest.mark.parametrize(
    ("skew_s", "level", "word"),
    [(0, "ok", "whole seconds"), (1, "ok", "whole seconds"), (30, "warn", "ahead"), (-30, "warn", "behind")],
)
def test_only_what_the_resolution_cannot_explain_is_skew(skew_s: float, level: str, word: str) -> None:
    found = clock(reply(formatdate(NOW_S + skew_s, usegmt=True)))
    assert found.level == level and word in found.seen


def test_a_slow_answer_widens_what_is_possible() -> None:
    assert clock(reply(formatdate(NOW_S + 30, usegmt=True), got_s=NOW_S + 40)).level == "ok"


@pytest.mark.parametrize("date", [None, "yesterday"])
def test_without_a_date_nothing_can_be_seen(date: str | None) -> None:
    assert clock(reply(date)).level == "skip"

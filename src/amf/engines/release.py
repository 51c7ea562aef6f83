"""Release numbers, as engines write them."""

import re

_NUMBERS = re.compile(r"\d+(?:\.\d+)*")


def release(version: str | None) -> tuple[int, ...]:
    """The numbers that a version begins with, to be compared with others: "0.5.23.post1+cpu" is (0, 5, 23). Empty if there are
    none."""
    numbers = _NUMBERS.match(version or "")
    return tuple(map(int, numbers[0].split("."))) if numbers else ()

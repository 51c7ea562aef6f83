"""A finding: what was looked at, what was seen, and what to do about it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Level = Literal["ok", "warn", "fail", "skip"]
LEVELS: tuple[Level, ...] = ("fail", "warn", "skip", "ok")


@dataclass(frozen=True, slots=True)
class Finding:
    """`fail`: something does not work as set up. `warn`: it works, and less well than it could. `skip`: could not be seen
    from here, and why. `subject` is a worker's name, or what else was examined."""

    check: str
    level: Level
    seen: str
    fix: str = ""
    subject: str = ""


def ok(check: str, seen: str) -> Finding:
    return Finding(check, "ok", seen)


def warn(check: str, seen: str, fix: str) -> Finding:
    return Finding(check, "warn", seen, fix)


def fail(check: str, seen: str, fix: str) -> Finding:
    return Finding(check, "fail", seen, fix)


def skip(check: str, seen: str, fix: str = "") -> Finding:
    return Finding(check, "skip", seen, fix)


def about(subject: str, findings: Iterable[Finding]) -> list[Finding]:
    return [replace(finding, subject=subject) for finding in findings]


def count(findings: Sequence[Finding]) -> dict[Level, int]:
    """How many of each level, the worst first."""
    return {level: sum(finding.level == level for finding in findings) for level in LEVELS}

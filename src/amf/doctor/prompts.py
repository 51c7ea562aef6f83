"""A file of chat request bodies, one JSON object a line, looked through for prompts that break their shared prefix.

Read here and nowhere else: findings hold places, counts and hashes, nothing of a text.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from amf.doctor.breaks import BYTES_PER_TOKEN, Break, Survey, survey
from amf.doctor.findings import Finding, fail, ok, warn
from amf.doctor.volatile import BILLING
from amf.engines.http import decoded

_FAIL_SHARE = 0.1  # of all prompt bytes, computed again for want of a stable prefix
_SHOWN = 3
_CLAUDE = "set CLAUDE_CODE_ATTRIBUTION_HEADER=0 where Claude Code runs"
_MOVE = "move what changes behind what stays: into the last message, or to the end of the system prompt"
_ADVICE = {"time": f"{_MOVE}; if a date is enough, send no time", BILLING: _CLAUDE}


class PromptsError(Exception):
    """The file cannot be used; the message says which line, and quotes nothing of it."""


def prompts(path: Path) -> list[Finding]:
    """Raises PromptsError."""
    found = survey(_bodies(path))
    if not found.requests:
        raise PromptsError(f"{path}: is empty; write one chat request body, a JSON object, on each line")
    findings = [_finding(each) for each in found.breaks]
    if found.billing and not any(place.kind == BILLING for each in found.breaks for place in each.places):
        seen = f"{found.billing} prompts begin with Claude Code's billing line, which changes with its version"
        findings.append(warn("billing line", seen, _CLAUDE))
    return findings or [ok("shared prefix", _counted(found))]


def _finding(broken: Break) -> Finding:
    worst, system_bytes = broken.worst, broken.system_bytes
    behind, wasted = (system_bytes - worst.at_byte) / system_bytes, broken.wasted_bytes / broken.prompt_bytes
    others = [
        f"a {place.kind} at byte {place.at_byte:,} ({place.values:,} values)"
        for place in broken.places
        if place != worst
    ]
    seen = (
        f"application {broken.application}, {broken.requests:,} requests: breaks at byte {worst.at_byte:,} of the system "
        f"prompt's {system_bytes:,} (about token {worst.at_byte // BYTES_PER_TOKEN:,}), at a {worst.kind} with "
        f"{worst.values:,} values; {behind:.0%} of it lies behind, and {wasted:.0%} of all prompt bytes were sent cold that "
        f"could have been warm{f'; also {_few(others)}' if others else ''}"
    )
    return (fail if wasted >= _FAIL_SHARE else warn)("shared prefix", seen, _ADVICE.get(worst.kind, _MOVE))


def _few(texts: list[str]) -> str:
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more


def _counted(found: Survey) -> str:
    silent = f", {found.without_system:,} without a system prompt" if found.without_system else ""
    return (
        f"{found.requests:,} requests of {found.applications:,} applications{silent}: no system prompts that differ by a time, "
        "an id or a number alone"
    )


def _bodies(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                body = decoded(line)
                if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
                    raise PromptsError(
                        f"{path}: line {number} is no chat request body; write a JSON object with `messages` on each line"
                    )
                yield body
    except OSError as error:
        raise PromptsError(f"{path}: cannot be read ({error.strerror})") from error

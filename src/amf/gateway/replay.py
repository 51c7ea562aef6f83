"""Replay of a journal: the same events must lead to the same decisions, byte for byte."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from amf.core.config import FabricConfig
from amf.core.fabric import Fabric
from amf.core.journal import decision_to_dict, event_from_dict
from amf.core.policy.bundles import policies_named
from amf.core.state.profiles import Profiles
from amf.gateway.journal import FORMAT

_MAX_DIFFERENCES = 100


@dataclass(frozen=True, slots=True)
class Difference:
    """At `line` of the journal (from 1) the fabric decided `now` where it had decided `then`."""

    line: int
    then: Any
    now: Any


@dataclass(frozen=True, slots=True)
class ReplayResult:
    events: int
    decisions: int
    differences: tuple[Difference, ...]


def replay(path: Path) -> ReplayResult:
    """Raises ValueError if the file is no journal of this format, OSError if it cannot be read."""
    differences: list[Difference] = []
    events = decisions = 0
    with path.open("rb") as lines:
        fabric = _fabric_of(_decoded(next(lines, b"null"), path, 1), path)
        for number, line in enumerate(lines, start=2):
            record = _decoded(line, path, number)
            events += 1
            then = {"error": record["error"]} if "error" in record else record["decisions"]
            now = _decide(fabric, record["event"])
            decisions += len(record["decisions"])
            if now != then and len(differences) < _MAX_DIFFERENCES:
                differences.append(Difference(number, then, now))
    return ReplayResult(events, decisions, tuple(differences))


def _decoded(line: bytes, path: Path, number: int) -> Any:
    try:
        return msgspec.json.decode(line)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path}: line {number} is not JSON; is this a journal, and whole?") from error


def _fabric_of(header: Any, path: Path) -> Fabric:
    """The fabric that wrote the journal."""
    if not isinstance(header, dict) or header.get("journal") != FORMAT:
        raise ValueError(f"{path} is no journal of format {FORMAT}")
    try:
        config = FabricConfig(**header["config"])
        policies = policies_named(header["policy"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} was written by amf {header.get('version')}, whose configuration differs") from error
    try:
        return Fabric(
            config, policies, Profiles.from_records(header["profiles"], config) if "profiles" in header else None
        )
    except ValueError as error:
        raise ValueError(f"{path}: what its fabric had learned before cannot be read: {error}") from error


def _decide(fabric: Fabric, event: dict[str, Any]) -> Any:
    try:
        decided = fabric.handle(event_from_dict(event))
    except Exception as error:  # a recorded fault must come back as the same fault
        return {"error": type(error).__name__}
    return msgspec.json.decode(msgspec.json.encode([decision_to_dict(d) for d in decided]))

"""Events and decisions as plain dicts and back, so that a journal is a complete record: replaying its events reproduces
every decision, byte for byte.

The form is generic over the dataclasses: a class name under `type`, then the fields that differ from their defaults.
Infinities are written as strings, since JSON has none. `VERSION` changes when an old journal can no longer be read.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from math import inf, isinf
from typing import Any, get_type_hints

from amf.core import decisions as decisions_module
from amf.core import events as events_module
from amf.core.decisions import Because, Decision, Price
from amf.core.events import Event
from amf.core.graph import CallGraph, graph_from_dict
from amf.core.types import BranchHint, Call, Prefix, Worker, WorkerProfile

VERSION = 1


def _classes(module: object, base: type) -> dict[str, type]:
    found = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, base)]
    return {kind.__name__: kind for kind in found if kind is not base}


_EVENTS = _classes(events_module, Event)
_DECISIONS = _classes(decisions_module, Decision)
_NESTED = {kind.__name__: kind for kind in (Because, BranchHint, Call, Prefix, Price, Worker, WorkerProfile)}


class JournalError(ValueError):
    """A record that no event or decision could have written. The message names the record's type or field."""


def event_to_dict(event: Event) -> dict[str, Any]:
    record: dict[str, Any] = _write(event)
    return record


def decision_to_dict(decision: Decision) -> dict[str, Any]:
    record: dict[str, Any] = _write(decision)
    return record


def event_from_dict(record: Mapping[str, Any]) -> Event:
    event = _read(record, _EVENTS)
    assert isinstance(event, Event)
    return event


def decision_from_dict(record: Mapping[str, Any]) -> Decision:
    decision = _read(record, _DECISIONS)
    assert isinstance(decision, Decision)
    return decision


def _write(value: Any) -> Any:
    if isinstance(value, CallGraph):
        return {"type": "CallGraph", **value.to_dict()}
    if is_dataclass(value):
        record: dict[str, Any] = {"type": type(value).__name__}
        for field in fields(value):
            content = getattr(value, field.name)
            if field.default is MISSING or content != field.default:
                record[field.name] = _write(content)
        return record
    if isinstance(value, range):
        return {"type": "range", "start": value.start, "stop": value.stop, "step": value.step}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple | list):
        return [_write(item) for item in value]
    if isinstance(value, float) and isinf(value):
        return "inf" if value > 0 else "-inf"
    return value


def _read(record: Any, kinds: Mapping[str, type] = _NESTED) -> Any:
    if isinstance(record, list):
        return tuple(_read(item) for item in record)
    if not isinstance(record, Mapping):
        return record
    name = str(record.get("type"))
    if name == "range":
        return range(record["start"], record["stop"], record["step"])
    if name == "CallGraph":
        return graph_from_dict({key: value for key, value in record.items() if key != "type"})
    if name not in kinds:
        raise JournalError(f"unknown record type {name!r}; known: {', '.join(sorted(kinds))}")
    kind = kinds[name]
    hints = _hints(kind)
    known = {field.name for field in fields(kind)}
    unknown = sorted(set(record) - known - {"type"})
    if unknown:
        raise JournalError(f"{name} has no field {unknown[0]!r}")
    try:
        return kind(**{key: _typed(_read(value), hints[key]) for key, value in record.items() if key != "type"})
    except TypeError as error:
        raise JournalError(f"{name}: {error}") from None


def _typed(value: Any, hint: Any) -> Any:
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint(value)
    if value in ("inf", "-inf") and hint in (float, float | None):
        return inf if value == "inf" else -inf
    return value


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)

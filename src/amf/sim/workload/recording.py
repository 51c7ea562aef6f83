"""Reading recorded traces: JSON lines and text, plain or gzip, with errors that name the place."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TypeVar

from amf.sim.scenario import ScenarioError

Item = TypeVar("Item")


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Non-empty lines with their numbers from 1. Raises ScenarioError if the file cannot be read."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            with TextIOWrapper(gzip.GzipFile(fileobj=raw) if packed else raw, encoding="utf-8") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        yield number, line
    except OSError as error:
        reason = error.strerror or str(error)
        raise ScenarioError(f"{path}: cannot be read ({reason}); check [workload] path") from error
    except (EOFError, UnicodeDecodeError, zlib.error) as error:
        raise ScenarioError(f"{path}: is damaged or not text ({error}); fetch the recording again") from error


def decoded(path: Path, decode: Callable[[dict[str, Any]], Item]) -> list[Item]:
    """Every JSON line of `path` through `decode`. Raises ScenarioError naming the line that is not what it should be."""
    items: list[Item] = []
    for number, line in text_lines(path):
        try:
            items.append(decode(json.loads(line)))
        except (KeyError, TypeError, ValueError) as error:
            reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise ScenarioError(f"{path}: line {number} {reason}; is it of the kind the scenario says?") from error
    if not items:
        raise ScenarioError(f"{path}: holds no records")
    return items

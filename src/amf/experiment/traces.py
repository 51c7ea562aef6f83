"""Which recordings the user has: files, or folders of them, told apart by their first record."""

import json
from collections.abc import Iterable
from pathlib import Path

from amf.sim.scenario import ScenarioError
from amf.sim.workload.recording import text_lines

_MARKS = {"claude-code": {"session", "calls"}, "mooncake": {"timestamp", "hash_ids"}}


def recordings(paths: Iterable[Path]) -> tuple[tuple[str, Path], ...]:
    """(kind, file) of each file given, and of those in each folder given that are of a kind known here. Raises ScenarioError
    for a file that cannot be read or is of no such kind, and for a folder without any."""
    found: list[tuple[str, Path]] = []
    for path in paths:
        if path.is_dir():
            inside = [(kind, file) for file in sorted(path.glob("*.jsonl*")) if (kind := _kind(file))]
            if not inside:
                raise ScenarioError(
                    f"--trace {path}: has no recorded sessions or Mooncake requests (*.jsonl, *.jsonl.gz)"
                )
            found += inside
        elif kind := _kind(path):
            found.append((kind, path))
        else:
            raise ScenarioError(
                f"--trace {path}: is neither recorded sessions nor Mooncake requests; see docs/scenarios.md"
            )
    return tuple((kind, file.resolve()) for kind, file in found)


def _kind(path: Path) -> str:
    """Empty if it is none of those known."""
    line = next((line for _, line in text_lines(path)), "")
    try:
        record = json.loads(line)
    except ValueError:
        return ""
    keys = set(record) if isinstance(record, dict) else set()
    return next((kind for kind, marks in _MARKS.items() if marks <= keys), "")

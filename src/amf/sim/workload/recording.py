"""Reading recorded traces: JSON and text, plain or gzip, one file or many, with errors that name the place."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from glob import glob, has_magic
from io import TextIOWrapper
from pathlib import Path
from random import Random
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


def files_of(path: Path) -> list[Path]:
    """The recordings that `path` names: itself, every .json and .jsonl file (plain or .gz) below it if it is a folder, or
    what matches it as a pattern; in the order of their names. Raises ScenarioError if there is none."""
    if path.is_dir():
        found = sorted(each for each in path.rglob("*") if each.name.removesuffix(".gz").endswith((".json", ".jsonl")))
        if not found:
            raise ScenarioError(f"{path}: is a folder without .json or .jsonl files; check [workload] path")
        return found
    if has_magic(str(path)) and not path.exists():
        found = [Path(each) for each in sorted(glob(str(path), recursive=True))]
        if not found:
            raise ScenarioError(f"{path}: matches no file; check [workload] path")
        return found
    return [path]


def documents(path: Path) -> Iterator[tuple[str, Any]]:
    """The JSON documents of a file, each with its place: one in each line if the first line is one, else the whole file.
    Raises ScenarioError for what is neither."""
    lines = text_lines(path)
    head = next(lines, None)
    if head is None:
        return
    try:
        yield f"line {head[0]}", json.loads(head[1])
    except ValueError as first_line:
        try:
            yield "it", json.loads(head[1] + "".join(line for _, line in lines))
        except ValueError:
            raise ScenarioError(
                f"{path}: line {head[0]} is not JSON ({first_line}), nor is the whole file"
            ) from first_line
        return
    for number, line in lines:
        try:
            yield f"line {number}", json.loads(line)
        except ValueError as error:
            raise ScenarioError(f"{path}: line {number} is not JSON ({error}); is the file cut off?") from error


def decoded(path: Path, decode: Callable[[dict[str, Any]], Item]) -> list[Item]:
    """Every JSON document of the files at `path` through `decode`. Raises ScenarioError naming the file and the line that
    is not what it should be."""
    items: list[Item] = []
    for file in files_of(path):
        for place, document in documents(file):
            try:
                items.append(decode(document))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
                raise ScenarioError(f"{file}: {place} {reason}; is it of the kind the scenario says?") from error
    if not items:
        raise ScenarioError(f"{path}: holds no records")
    return items


def repeated(items: Sequence[Item], count: int, rng: Random) -> Iterator[tuple[Item, int]]:
    """`count` of them with the number of the round: all in random order, then again in another order, and so on."""
    for index in range(count):
        repetition, place = divmod(index, len(items))
        if not place:
            order = list(items)
            rng.shuffle(order)
        yield order[place], repetition

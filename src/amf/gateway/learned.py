"""What the fabric has learned of lengths and times, kept in a file so that a restart does not forget it.

JSON lines, as `Profiles.records` makes them: names of graphs, hops and models, counts, tokens and seconds; nothing of a prompt.
The file is written anew beside its place and moved there, so it is whole whenever the process ends. One thread writes, so an
older state never overtakes a newer one; records are made a few at a time between which calls go on.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from amf.config import ConfigError
from amf.core.config import FabricConfig
from amf.core.state.profiles import Profiles

log = logging.getLogger("amf.learned")

_AT_ONCE = 8  # records, between two chances for the event loop to run
_encode = msgspec.json.Encoder().encode


def load_profiles(path: Path, config: FabricConfig) -> Profiles:
    """Fresh ones if there is no such file. Raises ConfigError for a file that holds no profiles or damaged ones, OSError if it
    cannot be read."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return Profiles(config)
    try:
        return Profiles.from_records([msgspec.json.decode(line) for line in lines], config)
    except (RecursionError, ValueError) as error:  # msgspec's errors are such
        raise ConfigError(
            f"{path}: holds no learned profiles that can be used: {error}. Remove it to learn anew, or name another file in "
            "[profiles] path (--profiles)"
        ) from error


class ProfileKeeper:
    """Saves `profiles` at `path`. Raises OSError on construction if that cannot be done."""

    def __init__(self, path: Path, profiles: Profiles, interval_s: float) -> None:
        self._path = path
        self._records: Callable[[], Iterable[dict[str, Any]]] = profiles.records
        self._interval_s = interval_s
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="profiles")
        _write(path, [_encode(record) for record in self._records()])

    async def save_forever(self) -> None:
        """Every `interval_s`, until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            lines: list[bytes] = []
            for record in self._records():
                lines.append(_encode(record))
                if len(lines) % _AT_ONCE == 0:
                    await asyncio.sleep(0)
            await asyncio.wrap_future(self._disk.submit(self._try, lines))

    def close(self) -> None:
        """Save once more, and wait for it."""
        self._disk.submit(self._try, [_encode(record) for record in self._records()])
        self._disk.shutdown()

    def _try(self, lines: list[bytes]) -> None:
        try:
            _write(self._path, lines)
        except OSError as error:
            log.error("learned profiles cannot be saved", extra={"path": str(self._path), "reason": error.strerror})


def _write(path: Path, lines: list[bytes]) -> None:
    """The file is the old one or the new one, at any moment."""
    beside = path.with_name(path.name + ".new")
    with beside.open("wb") as file:
        file.write(b"\n".join(lines) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)

"""The journal on disk: one JSON line for the header, then one for each event with the decisions it led to.

Writing happens in memory; a thread carries full buffers to the file, so that a slow disk does not hold the event loop. If
the disk cannot keep up with `max_buffer_bytes`, writing waits: a journal with holes would be worth nothing.
"""

import asyncio
import dataclasses
import logging
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from amf import __version__
from amf.core.config import FabricConfig
from amf.core.decisions import Decision
from amf.core.events import Event
from amf.core.journal import decision_to_dict, event_to_dict

log = logging.getLogger("amf.journal")

FORMAT = 1
_encode = msgspec.json.Encoder().encode


class JournalWriter:
    """Opens `path` anew. Raises OSError if it cannot be written."""

    def __init__(
        self,
        path: Path,
        config: FabricConfig,
        policy: str,
        *,
        flush_interval_s: float = 0.5,
        max_buffer_bytes: int = 8 * 1024 * 1024,
    ) -> None:
        self._file: BinaryIO = path.open("wb")
        self._flush_interval_s = flush_interval_s
        self._max_buffer_bytes = max_buffer_bytes
        self._lines: list[bytes] = []
        self._bytes = 0
        self._append(
            {"journal": FORMAT, "version": __version__, "policy": policy, "config": dataclasses.asdict(config)}
        )

    def write(self, event: Event, decisions: list[Decision], error: str = "") -> None:
        line: dict[str, Any] = {"event": event_to_dict(event), "decisions": [decision_to_dict(d) for d in decisions]}
        if error:
            line["error"] = error
        self._append(line)
        if self._bytes > self._max_buffer_bytes:
            self._file.write(self._take())

    async def flush_forever(self) -> None:
        """Carry what was written to the file, every `flush_interval_s`, until cancelled."""
        while True:
            await asyncio.sleep(self._flush_interval_s)
            data = self._take()
            if data:
                try:
                    await asyncio.to_thread(self._write_through, data)
                except OSError as error:
                    log.error("the journal cannot be written", extra={"reason": error.strerror})

    def close(self) -> None:
        self._write_through(self._take())
        self._file.close()

    def _append(self, line: dict[str, Any]) -> None:
        data = _encode(line)
        self._lines.append(data)
        self._bytes += len(data) + 1

    def _take(self) -> bytes:
        data = b"".join(line + b"\n" for line in self._lines)
        self._lines.clear()
        self._bytes = 0
        return data

    def _write_through(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()

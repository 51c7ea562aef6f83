"""The journal on disk: one JSON line for the header, then one for each event with the decisions it led to.

Writing happens in memory; a thread of the writer's own carries the buffer to the file, so that a slow disk does not hold
the event loop. There is one such thread, hence what is handed over first is written first, and closing waits for all of it.
If the disk cannot keep up with `max_buffer_bytes`, writing waits: a journal with holes would be worth nothing.
"""

import asyncio
import contextlib
import dataclasses
import logging
from concurrent.futures import Future, ThreadPoolExecutor
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
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")
        self._flush_interval_s = flush_interval_s
        self._max_buffer_bytes = max_buffer_bytes
        self._lines: list[bytes] = []
        self._bytes = 0
        self._append(
            {"journal": FORMAT, "version": __version__, "policy": policy, "config": dataclasses.asdict(config)}
        )
        self._hand_over()

    def write(self, event: Event, decisions: list[Decision], error: str = "") -> None:
        line: dict[str, Any] = {"event": event_to_dict(event), "decisions": [decision_to_dict(d) for d in decisions]}
        if error:
            line["error"] = error
        self._append(line)
        if self._bytes > self._max_buffer_bytes:
            self._hand_over()
            self._written.result()

    async def flush_forever(self) -> None:
        """Carry what was written to the file, every `flush_interval_s`, until cancelled."""
        while True:
            await asyncio.sleep(self._flush_interval_s)
            if self._lines and self._written.done():
                self._hand_over()

    def close(self) -> None:
        """Waits until everything is in the file."""
        self._hand_over()
        self._disk.shutdown()
        with contextlib.suppress(OSError):  # the log says so already
            self._file.close()

    def _append(self, line: dict[str, Any]) -> None:
        data = _encode(line)
        self._lines.append(data)
        self._bytes += len(data) + 1

    def _hand_over(self) -> None:
        data = b"".join(line + b"\n" for line in self._lines)
        self._lines.clear()
        self._bytes = 0
        self._written: Future[None] = self._disk.submit(self._write_through, data)

    def _write_through(self, data: bytes) -> None:
        try:
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            log.error("the journal cannot be written", extra={"reason": error.strerror})

"""The journal on disk: one JSON line for the header, then one for each event with the decisions it led to. What the fabric
had learned before it began stands in the header, since its decisions follow from that as well.

If the disk cannot keep up with `max_buffer_bytes`, writing waits: a journal with holes would be worth nothing.
"""

import dataclasses
from pathlib import Path
from typing import Any

import msgspec

from amf import __version__
from amf.core.config import FabricConfig
from amf.core.decisions import Decision
from amf.core.events import Event
from amf.core.journal import decision_to_dict, event_to_dict
from amf.core.state.profiles import Profiles
from amf.gateway.lines import LineWriter

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
        profiles: Profiles | None = None,
    ) -> None:
        self.lines = LineWriter[bytes](
            path.open("wb"),
            bytes,
            name="journal",
            flush_interval_s=flush_interval_s,
            max_buffer_bytes=max_buffer_bytes,
        )
        header = {"journal": FORMAT, "version": __version__, "policy": policy, "config": dataclasses.asdict(config)}
        self._append(header if profiles is None else {**header, "profiles": list(profiles.records())})
        self.lines.hand_over()

    def write(self, event: Event, decisions: list[Decision], error: str = "") -> None:
        line: dict[str, Any] = {"event": event_to_dict(event), "decisions": [decision_to_dict(d) for d in decisions]}
        if error:
            line["error"] = error
        self._append(line)
        if self.lines.full:
            self.lines.hand_over()
            self.lines.wait()

    def _append(self, line: dict[str, Any]) -> None:
        data = _encode(line)
        self.lines.add(data, len(data) + 1)

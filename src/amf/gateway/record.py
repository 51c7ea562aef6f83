"""A recording of the traffic: what the simulator needs to play it again under other policies, and nothing that could be read.

One JSON line for the header, then one for each call when it has ended; docs/scenarios.md describes the fields. There is no
text. Runs, tenants and the keys of prompts are hashed (BLAKE2b) with a salt that is drawn when the file is opened and kept
nowhere else: within one file equal things stay equal, so sharing can be replayed; but guessing a text and hashing it leads
to nothing. Graphs, hops, models and workers keep their names.

A prompt mostly goes on where the run's last one ended, so a line says how many blocks it keeps of an earlier line and lists
the rest. Lines refer only backwards: whatever a kill leaves of the file can be read but for a torn last line. A file that
is there is never written over: the recording gets the next free name.

If the disk cannot keep up, calls are left out and counted, since a recording must not slow the service down.
"""

import gzip
import logging
import time
from base64 import b64encode
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import count
from pathlib import Path
from secrets import token_bytes
from typing import Any, BinaryIO, cast

import msgspec

from amf import __version__
from amf.core.types import Call, CallKind, SloClass
from amf.gateway.lines import LineWriter

log = logging.getLogger("amf.record")

FORMAT = 1
_HASH_BYTES = 8
_KEYS_AT_ONCE = 256  # between two chances for the event loop to run
_REMEMBERED_KEYS = 1_000_000  # of last prompts of runs
_LINE_BYTES, _KEY_BYTES = 400, 16  # of buffer charged to a call and to a key of its prompt
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A call that is over. Modelled seconds; token counts are the engine's where `outcome` is "ok"."""

    call: Call
    outcome: str
    arrived_s: float
    first_s: float | None
    ended_s: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int | None
    worker: str


class Recorder:
    """Opens a file at `path`, or at the next free name. Raises OSError if it cannot be written."""

    def __init__(
        self, path: Path, policy: str, *, flush_interval_s: float = 0.5, max_buffer_bytes: int = 8 * 1024 * 1024
    ) -> None:
        self.path = free_name(path)
        file = gzip.GzipFile(self.path, "xb") if self.path.suffix == ".gz" else self.path.open("xb")
        self.left_out = 0
        self._lines = _Lines(token_bytes(32), policy)
        self.lines = LineWriter[Ended | None](
            cast(BinaryIO, file),
            self._lines.encode,
            name="record",
            flush_interval_s=flush_interval_s,
            max_buffer_bytes=max_buffer_bytes,
        )
        self.lines.add(None, _LINE_BYTES)
        self.lines.hand_over()
        if self.path != path:
            log.warning("the recording's name was taken", extra={"path": str(self.path)})

    def ended(self, ended: Ended) -> None:
        if self.lines.full:
            if self.lines.busy:
                if not self.left_out:
                    log.warning("the disk cannot keep up with the recording: calls are left out")
                self.left_out += 1
                return
            self.lines.hand_over()
        self.lines.add(ended, _LINE_BYTES + _KEY_BYTES * len(ended.call.prefix.keys))


def free_name(path: Path) -> Path:
    """`path`, or with a number before its suffixes if it is taken: calls.jsonl.gz, calls.2.jsonl.gz, …"""
    suffixes = "".join(path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:])
    stem = path.name.removesuffix(suffixes)
    names = (path if number == 1 else path.with_name(f"{stem}.{number}{suffixes}") for number in count(1))
    return next(name for name in names if not name.exists())


class _Lines:
    """Calls as lines. Runs in the writer's thread only."""

    def __init__(self, salt: bytes, policy: str) -> None:
        self._salt = salt
        self._policy = policy
        self._numbers = count()
        self._last: OrderedDict[str, tuple[int, Sequence[int]]] = OrderedDict()  # by run: its last line and keys
        self._remembered = 0

    def encode(self, ended: Ended | None) -> bytes:
        if ended is None:
            return _encode({"amf_recording": FORMAT, "version": __version__, "policy": self._policy})
        call = ended.call
        line: dict[str, Any] = {
            "n": next(self._numbers),
            "run": self._hash(call.run_id),
            "at": round(ended.arrived_s, 6),
            "end": round(ended.ended_s, 6),
            "outcome": ended.outcome,
            "pool": call.pool,
            "prompt": ended.prompt_tokens,
            "output": ended.output_tokens,
        }
        if ended.first_s is not None:
            line["first"] = round(ended.first_s, 6)
        if call.deadline_s is not None:
            line["deadline"] = round(call.deadline_s - ended.arrived_s, 6)
        optional: dict[str, Any] = {
            "kind": "" if call.kind is CallKind.GENERATE else call.kind.value,
            "graph": call.graph,
            "hop": call.hop,
            "parents": call.parents,
            "tenant": self._hash(call.tenant) if call.tenant else "",
            "slo": "" if call.slo_class is SloClass.INTERACTIVE else call.slo_class.value,
            "final": call.final,
            "worker": ended.worker,
        }
        line |= {name: value for name, value in optional.items() if value}
        if ended.cached_tokens is not None:
            line["cached"] = ended.cached_tokens
        return _encode(line | self._prompt(line["n"], call))

    def _prompt(self, number: int, call: Call) -> dict[str, Any]:
        """The prompt's blocks: how many it keeps of an earlier line, and the rest, each with its length in tokens."""
        keys, ends = call.prefix.keys, call.prefix.ends
        like, known = self._last.get(call.run_id, (0, ()))
        keep = next((i for i, (one, other) in enumerate(zip(keys, known, strict=False)) if one != other), None)
        keep = min(len(keys), len(known)) if keep is None else keep
        self._remember(call.run_id, number, keys)
        fields: dict[str, Any] = {"estimate": call.prefix.total_tokens}
        if keep:
            fields |= {"like": like, "keep": keep}
        if len(keys) > keep:
            fields["keys"] = b64encode(self._salted(keys[keep:])).decode()
            if isinstance(ends, range):
                fields["size"] = ends.step
            else:
                begins = (ends[keep - 1] if keep else 0, *ends[keep:-1])
                fields["sizes"] = [end - begin for begin, end in zip(begins, ends[keep:], strict=True)]
        return fields

    def _remember(self, run_id: str, number: int, keys: Sequence[int]) -> None:
        self._remembered += len(keys) - len(self._last.pop(run_id, (0, ()))[1])
        self._last[run_id] = (number, keys)
        while self._remembered > _REMEMBERED_KEYS and len(self._last) > 1:
            _, (_, forgotten) = self._last.popitem(last=False)
            self._remembered -= len(forgotten)

    def _salted(self, keys: Sequence[int]) -> bytes:
        parts: list[bytes] = []
        for index, key in enumerate(keys):
            data = key.to_bytes(16, "little", signed=True)
            parts.append(blake2b(data, digest_size=_HASH_BYTES, key=self._salt).digest())
            if not index % _KEYS_AT_ONCE:
                time.sleep(0)
        return b"".join(parts)

    def _hash(self, name: str) -> str:
        return blake2b(name.encode(), digest_size=_HASH_BYTES, key=self._salt).hexdigest()

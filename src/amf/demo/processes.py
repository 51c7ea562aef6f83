"""Child processes that never outlive the demo.

Each child leads its own process group and writes to its own log file. Whatever ends the demo (success, failure,
Ctrl-C, SIGTERM, interpreter exit) ends the groups: first SIGTERM, then SIGKILL.
"""

import asyncio
import atexit
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

_URL = re.compile(r"https?://[\w.\-]+:[1-9]\d*")
_POLL_S = 0.05
_GRACE_S = 3.0
_LOG_TAIL_BYTES = 2_000


class ChildError(Exception):
    """A child did not start or died. The message says which, why, and where its log is."""


class Child:
    """One `python -m amf …` process."""

    def __init__(self, name: str, arguments: Sequence[str], log: Path) -> None:
        self.name = name
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "amf", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "TERM": "dumb"},
            )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    async def url(self, timeout_s: float) -> str:
        """Wait until the child has printed its address and answers on /health. Raises ChildError."""
        give_up_s = time.monotonic() + timeout_s
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as http:
            while time.monotonic() < give_up_s:
                if not self.alive:
                    raise ChildError(f"{self.name} ended with status {self._process.returncode}\n{self.explain()}")
                found = _URL.search(self.log.read_text(errors="replace"))
                if found and await _healthy(http, found.group()):
                    return found.group()
                await asyncio.sleep(_POLL_S)
        raise ChildError(f"{self.name} was not ready after {timeout_s:.0f} s\n{self.explain()}")

    def explain(self) -> str:
        """Where the log is and how it ends."""
        text = self.log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")
        return f"log: {self.log}\n{text}"

    def signal(self, number: signal.Signals) -> None:
        """To the child's whole group; nothing if the child itself is gone and reaped."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def wait(self, timeout_s: float) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        return not self.alive


class Children:
    """All children of one demo. Use as a context manager: leaving it ends them all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._all: list[Child] = []

    def __enter__(self) -> Self:
        atexit.register(self.stop)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
        atexit.unregister(self.stop)

    def start(self, name: str, *arguments: str) -> Child:
        child = Child(name, arguments, self._folder / f"{name}.log")
        self._all.append(child)
        return child

    def stop(self, only: Sequence[Child] | None = None) -> None:
        """End `only` these, or all: SIGTERM, a short grace, SIGKILL."""
        leaving = list(self._all if only is None else only)
        for child in leaving:
            child.signal(signal.SIGTERM)
        give_up_s = time.monotonic() + _GRACE_S
        for child in leaving:
            if not child.wait(max(0.0, give_up_s - time.monotonic())):
                child.signal(signal.SIGKILL)
                child.wait(_GRACE_S)
        self._all = [child for child in self._all if child not in leaving]

    def check(self) -> None:
        """Raises ChildError if any child has died."""
        for child in self._all:
            if not child.alive:
                raise ChildError(f"{child.name} died during the run\n{child.explain()}")


async def _healthy(http: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with http.get(f"{url}/health") as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False

"""The servers of a measurement: each a process of its own, found by the line it prints, stopped when its context is left."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

RIG = Path(__file__).parent
_START_LIMIT_S = 30.0
_STOP_LIMIT_S = 10.0


@dataclass(frozen=True, slots=True)
class Server:
    name: str
    pid: int
    said: str  # the first line it printed

    @property
    def url(self) -> str:
        return next(word for word in self.said.split() if word.startswith("http://"))

    def cpu_s(self) -> float | None:
        """Seconds of CPU the process and its children have used; None where /proc does not tell."""
        total_ns = 0
        for pid in _tree(self.pid):
            try:
                threads = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
            except OSError:  # a thread that ended between the listing and the reading
                continue
            total_ns += sum(int(thread.split()[0]) for thread in threads)
        return total_ns / 1e9 if total_ns else None


def _tree(pid: int) -> list[int]:
    children = [
        int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()
    ]
    return [pid, *(below for child in children for below in _tree(child))]


@asynccontextmanager
async def running(name: str, *arguments: str, source: Path | None = None) -> AsyncIterator[Server]:
    """`python ARGUMENTS` until the context is left. `source`: a tree to import from instead of what is installed.

    Raises RuntimeError if it ends, TimeoutError if it prints nothing.
    """
    environment = dict(os.environ)
    if source is not None:
        environment["PYTHONPATH"] = str(source)
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=asyncio.subprocess.PIPE, env=environment
    )
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), _START_LIMIT_S)
        if not line:
            raise RuntimeError(f"{name} did not start")
        yield Server(name, process.pid, line.decode().strip())
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _STOP_LIMIT_S)
        except TimeoutError:
            process.kill()
            await process.wait()


@asynccontextmanager
async def upstreams(count: int) -> AsyncIterator[list[str]]:
    """URLs of mock model servers, all in one process."""
    async with running("upstream", str(RIG / "upstream.py"), str(count)) as server:
        yield [f"http://127.0.0.1:{port}" for port in server.said.split()]

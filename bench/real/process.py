"""A server that is started for a `with` block, answers before the block begins, and does not outlive it (see keeper.py)."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

KEEPER = Path(__file__).parent / "keeper.py"
START_S = 600.0
_FOREIGN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONHASHSEED")  # of the environment that starts it


@dataclass(frozen=True, kw_only=True)
class Command:
    """`name`: the engine's, for complaints. `url` answers /health when it is ready."""

    name: str
    arguments: Sequence[str | Path]
    environment: dict[str, str]
    url: str
    log: Path


@contextmanager
def running(command: Command) -> Iterator[Callable[[], None]]:
    """While the server runs, at low priority, so that its answers are read as they come. Yields what kills it before that
    (SIGKILL, with all that it started). Raises RuntimeError, with its complaint, if it does not start."""
    inherited = {name: value for name, value in os.environ.items() if name not in _FOREIGN}
    with command.log.open("wb") as out:
        keeper = subprocess.Popen(
            [sys.executable, KEEPER, "nice", "-n", "10", *command.arguments],
            env=inherited | command.environment,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    assert keeper.stdin is not None
    pipe = keeper.stdin

    def kill() -> None:
        pipe.write(b"!")
        pipe.flush()
        keeper.wait()

    try:
        _wait_until_healthy(command, keeper)
        yield kill
    finally:
        with suppress(BrokenPipeError):
            pipe.close()
        keeper.wait()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _wait_until_healthy(command: Command, process: subprocess.Popen[bytes]) -> None:
    give_up_at_s = time.monotonic() + START_S
    while time.monotonic() < give_up_at_s:
        if process.poll() is not None:
            raise RuntimeError(f"{command.name} ended with status {process.returncode}:\n{_tail(command.log)}")
        try:
            with closing(urllib.request.urlopen(command.url + "/health", timeout=5)):
                return
        except OSError:
            time.sleep(0.25)
    raise RuntimeError(f"{command.name} did not answer within {START_S:g} s:\n{_tail(command.log)}")


def _tail(log: Path) -> str:
    """What it complained of, and where to read on."""
    complaints = [line for line in log.read_text(errors="replace").splitlines() if "Error: " in line]
    return "\n".join([*complaints[-5:], f"(its log: {log})"])

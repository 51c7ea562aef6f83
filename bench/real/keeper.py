"""Runs a command for as long as its own standard input stays open, then ends it and all that it started. A byte that comes in
means: kill it, as a machine that fails would, without a word.

Whoever starts the keeper holds the other end of that pipe. However that process goes, by its own will, Ctrl-C or a kill, the
system closes the pipe, and so nothing outlives it. The command is asked to end, and what is left of its process group after
`STOP_S` seconds (an engine that is just starting may not listen) is killed.
"""

import os
import select
import signal
import subprocess
import sys
from contextlib import suppress

STOP_S = 10.0
_LOOK_S = 0.2


def main() -> int:
    command = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)
    while command.poll() is None:
        readable, _, _ = select.select([sys.stdin], [], [], _LOOK_S)
        if readable:
            if not os.read(sys.stdin.fileno(), 1):
                _ask_to_end(command)
            break
    with suppress(ProcessLookupError):
        os.killpg(command.pid, signal.SIGKILL)
    return command.wait()


def _ask_to_end(command: subprocess.Popen[bytes]) -> None:
    with suppress(subprocess.TimeoutExpired):
        command.terminate()
        command.wait(STOP_S)


if __name__ == "__main__":
    sys.exit(main())

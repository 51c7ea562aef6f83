"""`amf serve` as a process: its ready line, its errors, its end."""

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SERVE = [sys.executable, "-c", "import typer; from amf.commands.serve import serve; typer.run(serve)"]
READY = re.compile(r"^amf serve: listening on (http://127\.0\.0\.1:\d+) policy=(\S+) workers=(\d+)$")


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [*SERVE, "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def test_ready_line_and_graceful_end(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    with serving("--policy", "essay", "--worker", "http://127.0.0.1:9", "--journal", str(journal)) as (process, line):
        match = READY.match(line)
        assert match, line
        url, policy, workers = match.groups()
        assert (policy, workers) == ("essay", "1")
        with urllib.request.urlopen(url + "/health", timeout=5) as response:
            assert json.load(response) == {"status": "ok"}
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=10)
        assert process.returncode == 0
    lines = [json.loads(entry) for entry in errors.splitlines()]
    assert any(entry["message"] == "worker not usable" and entry["level"] == "warning" for entry in lines)
    assert json.loads(journal.read_text().splitlines()[0])["policy"] == "essay"


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = subprocess.run([*SERVE, "--port", str(port)], capture_output=True, text=True, timeout=30)
    assert result.returncode == 2
    assert f"port {port} on 127.0.0.1 is in use" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--policy", "best"), "unknown policy 'best'"),
        (("--policy", "fabric-clairvoyant"), "only `amf simulate` can run it"),
        (("--worker", "10.0.0.1"), "http://"),
        (("--port", "99999"), "65535"),
        (("--time-scale", "0"), "above 0"),
        (("-c", "/nowhere.toml"), "cannot be read"),
        (("--log-level", "loud"), "loud"),
        (("--port", "0", "--journal", "/nowhere/at/all"), "/nowhere/at/all"),
        (("--port", "0", "--profiles", "/nowhere/at/all"), "/nowhere/at/all"),
        (("--port", "0", "--profiles", __file__), "test_serve_command.py: holds no learned profiles"),
    ],
)
def test_mistakes_end_with_2_and_a_remedy(arguments: tuple[str, ...], words: str) -> None:
    result = subprocess.run([*SERVE, *arguments], capture_output=True, text=True, timeout=30)
    assert result.returncode == 2, result.stderr
    assert words.lower() in result.stderr.lower()
    assert "Traceback" not in result.stderr

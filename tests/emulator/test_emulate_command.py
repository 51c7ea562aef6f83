"""`amf emulate` as a process."""

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

COMMAND = [sys.executable, "-c", "import typer; from amf.commands.emulate import emulate; typer.run(emulate)"]


@contextmanager
def process(*options: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A running emulator and its URL."""
    with subprocess.Popen([*COMMAND, "--port", "0", *options], stdout=subprocess.PIPE, text=True) as emulator:
        try:
            assert emulator.stdout is not None
            line = emulator.stdout.readline()
            found = re.search(r"^amf emulate: serving \S+ on (http://127.0.0.1:\d+) ", line)
            assert found, line
            yield emulator, found[1]
        finally:
            emulator.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_stop(number: signal.Signals):
    with process("--model", "qwen3-8b", "--time-scale", "100", "--kv-tokens", "50000") as (emulator, url):
        assert json.load(urllib.request.urlopen(f"{url}/v1/models"))["data"][0]["id"] == "qwen3-8b"
        body = json.dumps({"prompt": "hi", "max_tokens": 40_000, "ignore_eos": True, "stream": True})
        request = urllib.request.Request(f"{url}/v1/completions", body.encode())
        with urllib.request.urlopen(request) as stream:
            assert stream.readline().startswith(b"data: ")
            emulator.send_signal(number)
            assert emulator.wait(timeout=20) == 0


def test_it_dies_in_mid_stream_when_asked_to():
    with process("--die-after-tokens", "30") as (emulator, url):
        body = json.dumps({"prompt": "hi", "max_tokens": 500, "ignore_eos": True, "stream": True})
        request = urllib.request.Request(f"{url}/v1/completions", body.encode())
        with urllib.request.urlopen(request) as stream:
            content = stream.read1(10**6)
            assert content.startswith(b"data: ") and b"[DONE]" not in content
            assert emulator.wait(timeout=20) == 137


@pytest.mark.parametrize("option", ["--port", "--kv-events-port"])
def test_a_port_in_use_is_said_and_is_misuse(option: str):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        run = subprocess.run([*COMMAND, "--port", "0", option, port], capture_output=True, text=True, timeout=20)
    assert run.returncode == 2
    assert port in run.stderr and "in use" in run.stderr and "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--model", "llama-9"], "llama-3.1-8b"),
        (["--model", "/nowhere/config.json"], "/nowhere/config.json"),
        (["--model", "llama-3.3-70b", "--gpu", "l40s"], "tensor_parallel"),
        (["--time-scale", "0"], "time-scale"),
        (["--kv-tokens", "3"], "block"),
        (["--garbage", "2"], "garbage"),
    ],
)
def test_wrong_options_are_explained(options: list[str], word: str):
    run = subprocess.run([*COMMAND, "--port", "0", *options], capture_output=True, text=True, timeout=20)
    assert run.returncode == 2
    assert word in run.stderr and "Traceback" not in run.stderr

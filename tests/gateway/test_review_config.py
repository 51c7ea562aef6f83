"""Numbers, addresses and names in fabric.toml and on the command line that cannot be: refused before anything starts."""

import subprocess
import sys

import pytest

from amf.config import ConfigError, config_from_dict
from amf.gateway.body import Body
from amf.gateway.identity import read_identity

WORKER = {"url": "http://127.0.0.1:1"}
SERVE = [sys.executable, "-c", "import typer; from amf.commands.serve import serve; typer.run(serve)", "--port", "0"]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"server": {"time_scale": float("nan")}}, ("[server]", "time_scale", "nan")),
        ({"server": {"time_scale": float("inf")}}, ("[server]", "time_scale", "inf")),
        ({"server": {"log_level": "loud"}}, ("[server]", "log_level", "debug")),
        ({"server": {"shutdown_grace_s": -1}}, ("[server]", "shutdown_grace_s")),
        ({"limits": {"retry_max_s": float("nan")}}, ("[limits]", "retry_max_s")),
        ({"limits": {"breaker_failures": 0}}, ("[limits]", "breaker_failures")),
        ({"limits": {"observe_interval_s": -1}}, ("[limits]", "observe_interval_s")),
        ({"fabric": {"max_attempts": 0}}, ("[fabric]", "max_attempts")),
        ({"fabric": {"tick_s": 0}}, ("[fabric]", "tick_s")),
        ({"fabric": {"cold_tokens": -1}}, ("[fabric]", "cold_tokens")),
        ({"worker": [{**WORKER, "kv_tokens": -4}]}, ("[[worker]]", "kv_tokens")),
        ({"worker": [{**WORKER, "tensor_parallel": 0}]}, ("[[worker]]", "tensor_parallel")),
        ({"worker": [{**WORKER, "name": "a\nb"}]}, ("[[worker]]", "name")),
        ({"worker": [{"url": "http://"}]}, ("[[worker]]", "http://host:port")),
        ({"worker": [{"url": "http://h:99999"}]}, ("[[worker]]", "http://host:port")),
    ],
)
def test_what_cannot_be_is_named(document: dict[str, object], words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_dict(document, "fabric.toml")
    assert all(word in str(caught.value) for word in ("fabric.toml", *words)), str(caught.value)


def test_zero_is_allowed_where_it_means_something() -> None:
    document = {"server": {"port": 0, "shutdown_grace_s": 0}, "fabric": {"cold_tokens": 0, "no_worker_wait_s": 0}}
    assert config_from_dict(document).fabric.cold_tokens == 0


@pytest.mark.parametrize(
    "options",
    [("--time-scale", "nan"), ("--log-level", "loud"), ("--worker", "http://h:port"), ("--worker", "localhost:9")],
)
def test_options_that_cannot_be(options: tuple[str, str]) -> None:
    done = subprocess.run([*SERVE, *options], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert options[0] in done.stderr and options[1] in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("headers", "fields", "source"),
    [
        ({"x-session-id": "a\tb"}, {"prompt_cache_key": "key"}, "body:prompt_cache_key"),
        ({"x-session-id": "x" * 300, "helicone-session-id": "h"}, {}, "helicone"),
        ({}, {"session_id": "a\nb", "prompt_cache_key": "key"}, "body:prompt_cache_key"),
        ({"baggage": "session.id=a%0Ab"}, {}, "derived"),
        ({"baggage": "gen_ai.conversation.id=a%0Ab,session.id=s"}, {}, "baggage"),
    ],
)
def test_a_hint_that_cannot_be_used_leaves_its_rung_free(
    headers: dict[str, str], fields: dict[str, str], source: str
) -> None:
    identity = read_identity(headers, Body(**fields))
    assert identity.source == source
    assert bool(identity.run_id) == (source != "derived")

"""`amf cache` as a user runs it, before a fake of LMCache's controller."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from amf.cli import app
from amf.emulator import EmulatorConfig, running
from fake_lmcache import DISK, HOST_MEMORY, fake_controller

TOKENS = list(range(1000, 2300))


async def cache(*arguments: object, given: str | None = None) -> Result:
    """`amf cache ARGUMENTS` in a thread of its own, while the controller answers it. `given`: on standard input."""
    words = [str(argument) for argument in ("cache", *arguments)]
    return await asyncio.to_thread(CliRunner().invoke, app, words, given)


@pytest.fixture
def prompt(tmp_path: Path) -> Path:
    path = tmp_path / "prompt.json"
    path.write_text(json.dumps(TOKENS))
    return path


def toml(folder: Path, url: str, worker: str = "http://127.0.0.1:9", tokenizer: str = "engine") -> Path:
    path = folder / "fabric.toml"
    path.write_text(
        f'[residency]\nurl = "{url}"\n[[worker]]\nurl = "{worker}"\nname = "w"\nlmcache_instance = "b"\n'
        f'[pools."llama-3.1-8b"]\ntokenizer = "{tokenizer}"\n'
    )
    return path


async def test_lookup_shows_where_a_prompt_lies(tmp_path: Path, prompt: Path) -> None:
    report = tmp_path / "report.json"
    async with fake_controller("a", "b") as lmcache:
        config = toml(tmp_path, lmcache.url)
        nothing = await cache("lookup", "-c", config, "--prompt", prompt)
        lmcache.hold("a", TOKENS[:600])
        lmcache.hold("b", TOKENS, DISK)
        result = await cache("lookup", "-c", config, "--prompt", prompt, "--json", report)
    assert nothing.exit_code == 0 and "No instance holds a chunk of it." in nothing.output
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.output.splitlines()]
    assert ["a", "-", HOST_MEMORY, "512"] in lines and ["b", "w", DISK, "1,280"] in lines
    assert "Beyond 1,280 tokens nobody holds anything." in result.output
    told = json.loads(report.read_text())
    assert (told["prompt_tokens"], told["longest_tokens"]) == (1300, 1280)
    assert told["held"][1] == {"instance": "b", "location": DISK, "tokens": 1280, "tier": "disk", "workers": ["w"]}


async def test_pin_move_and_clear(prompt: Path) -> None:
    async with fake_controller("a", "b") as lmcache:
        url = ("--url", lmcache.url)
        lmcache.hold("a", TOKENS)
        pinned = await cache("pin", *url, "--prompt", "-", "--instance", "a", given=json.dumps(TOKENS))
        assert pinned.output == f"pinned 1,280 of 1,300 tokens in a {HOST_MEMORY}\n"
        move = ("move", *url, "--prompt", prompt, "--instance", "a", "--to", "b", "--to-location", DISK)
        copied = await cache(*move, "--copy")
        assert copied.output == f"copied 1,280 of 1,300 tokens from a {HOST_MEMORY} to b {DISK}\n"
        assert (await cache(*move)).output.startswith("moved 1,280 of 1,300 tokens from a")
        assert [body["copy"] for path, body in lmcache.asked if path == "/move"] == [True, False]
        refused = await cache("clear", *url, "--instance", "b", "--location", DISK, given="n\n")
        assert refused.exit_code == 1 and not [path for path, _ in lmcache.asked if path == "/clear"]
        cleared = await cache("clear", *url, "--instance", "b", "--location", DISK, "--yes")
        assert cleared.output == f"cleared 1,280 tokens in b {DISK}\n"
    assert lmcache.pinned == [("a", HOST_MEMORY, 1280)]


@pytest.mark.parametrize("lists_all", [True, False])
async def test_instances(tmp_path: Path, lists_all: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a release that can list everybody, and with one that can be asked about one instance only."""
    async with fake_controller("a") as lmcache:
        answer = lmcache.query_worker_info
        if not lists_all:

            def told(body: dict[str, Any]) -> dict[str, Any]:
                return {"event_id": "e", "worker_infos": []} if body["instance_id"] == "all" else answer(body)

            monkeypatch.setattr(lmcache, "query_worker_info", told)
        result = await cache("instances", "-c", toml(tmp_path, lmcache.url))
        assert result.exit_code == 0 and "Configured and not registered: b." in result.output
        assert ("a" in [line.split()[0] for line in result.output.splitlines()]) == lists_all
        toml(tmp_path, lmcache.url).write_text((tmp_path / "fabric.toml").read_text().replace('"b"', '"a"'))
        result = await cache("instances", "-c", tmp_path / "fabric.toml")
    line = next(line for line in result.output.splitlines() if line.startswith("a "))
    assert line.split() == ["a", "0", "w", "127.0.0.1:8001", "2025-11-26", "06:37:40", "UTC"]


async def test_a_requests_body_is_tokenised_as_its_pool_is(tmp_path: Path) -> None:
    body = {"model": "llama-3.1-8b", "messages": [{"role": "user", "content": "hello " * 300}]}
    async with fake_controller("b") as lmcache, running(EmulatorConfig()) as engine:
        config = toml(tmp_path, lmcache.url, engine.url + "/v1")
        result = await cache("lookup", "-c", config, "--prompt", "-", given=json.dumps(body))
        assert result.exit_code == 0, result.output
    (path, asked) = lmcache.asked[0]
    assert path == "/lookup" and len(asked["tokens"]) > 300
    assert result.output.startswith(f"The prompt has {len(asked['tokens']):,} tokens.")


BODY = '{"model": "llama-3.1-8b", "messages": []}'


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", "not JSON"),
        ("[]", "neither a list of token ids"),
        ("[1, -2]", "neither a list of token ids"),
        ("[true]", "neither a list of token ids"),
        ('"text"', "neither a list of token ids"),
        ('{"model": "other", "messages": []}', "known: llama-3.1-8b"),
        ('{"model": "llama-3.1-8b"}', "neither `messages` nor `prompt`"),
        (BODY, "could not be tokenised"),
    ],
)
async def test_a_prompt_that_is_none(tmp_path: Path, given: str, words: str) -> None:
    async with fake_controller("b") as lmcache:
        result = await cache("lookup", "-c", toml(tmp_path, lmcache.url), "--prompt", "-", given=given)
    assert result.exit_code == 2 and words in result.output, result.output
    assert lmcache.asked == []


async def test_a_tokenizer_that_is_none(tmp_path: Path) -> None:
    config = toml(tmp_path, "http://127.0.0.1:9", tokenizer=str(tmp_path))
    result = await cache("lookup", "-c", config, "--prompt", "-", given=BODY)
    assert result.exit_code == 2 and "tokenizer.json" in result.output


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        ((), 2, "[residency] url"),
        (("--url", "127.0.0.1:9000"), 2, "http://"),
        (("--url", "http://127.0.0.1:9"), 1, "no connection to the controller"),
        (("-c", "/nowhere/fabric.toml"), 2, "cannot be read"),
        (("--url", "http://127.0.0.1:9", "--json", "/nowhere/at/all.json"), 2, "--json"),
    ],
)
async def test_mistakes_end_with_a_remedy(arguments: tuple[str, ...], code: int, word: str) -> None:
    result = await cache("instances", *arguments)
    assert result.exit_code == code and word in result.output and "Traceback" not in result.output, result.output


async def test_what_the_controller_says_of_a_refusal_is_shown(prompt: Path) -> None:
    async with fake_controller("a") as lmcache:
        result = await cache("pin", "--url", lmcache.url, "--prompt", prompt, "--instance", "z")
    assert result.exit_code == 1 and "not registered for instance 'z'" in result.output
    assert "amf cache instances" in result.output

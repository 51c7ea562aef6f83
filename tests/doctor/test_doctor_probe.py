"""`amf doctor --probe`: what only calls show, on emulated engines and through proxies that spoil them."""

import json
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from doctor_kit import Instead, doctor, emulated, fabric_toml, levels, proxied, refusing_priorities, replacing
from tokenizers import Tokenizer, models, pre_tokenizers

from amf.gateway.exact import LocalEncoder

WARM = b'"prompt_tokens_details"'


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A local tokenizer that is not the emulator's."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "one": 1, "two": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return folder


def tokenizing(directory: Path) -> Instead:
    """/tokenize as an engine with the tokenizer of `directory` answers it."""
    encoder = LocalEncoder(directory)

    async def answer(request: web.Request) -> web.Response | None:
        if request.path != "/tokenize":
            return None
        tokens = await encoder.encode(await request.read())
        return web.json_response({"tokens": tokens, "count": len(tokens or ())})

    return answer


async def test_a_sound_engine_with_events(tmp_path: Path) -> None:
    async with emulated(kv_events_port=0) as emulator:
        config = fabric_toml(tmp_path, {"url": emulator.url, "name": "a"}, tokenizer="engine")
        result, findings = await doctor("-c", config, "--probe", folder=tmp_path)
    seen = levels(findings, "a")
    for check in ("KV event of a call", "X-Session-ID", "hash agreement", "cached tokens", "X-Request-Id"):
        assert seen[check] == "ok", result.output
    assert seen["usage of streams"] == "warn"  # the emulator sends it to who asks
    assert "--enable-force-include-usage" in findings["a", "usage of streams"]["fix"]
    assert (seen["priority"], seen["X-Vllm-Priority"]) == ("skip", "skip"), "it takes any, as vLLM 0.32 does"
    assert "probe" not in seen and result.exit_code == 0


@pytest.mark.parametrize(
    ("refuses", "configured", "level", "word"),
    [
        (True, True, "fail", "--scheduling-policy priority"),
        (True, False, "ok", ""),
        (False, True, "skip", "--scheduling-policy priority"),
        (False, False, "skip", ""),
    ],
)
async def test_priority_against_the_configuration(
    tmp_path: Path, refuses: bool, configured: bool, level: str, word: str
) -> None:
    """Older releases refuse priorities that they do not schedule by. Who takes them need not schedule by them."""
    async with emulated() as emulator, proxied(emulator.url, instead=refusing_priorities if refuses else None) as url:
        config = fabric_toml(tmp_path, {"url": url, "name": "a", "priority": configured})
        result, findings = await doctor("-c", config, "--probe", folder=tmp_path)
    assert findings["a", "priority"]["level"] == level
    assert word in findings["a", "priority"]["fix"]
    assert result.exit_code == (level == "fail")
    assert findings["a", "X-Vllm-Priority"]["level"] == ("ok" if refuses else "skip")


async def test_headers_that_are_stripped(tmp_path: Path) -> None:
    stripped = ("x-vllm-priority", "x-session-id", "x-request-id")
    async with (
        emulated(kv_events_port=0) as emulator,
        proxied(emulator.url, instead=refusing_priorities) as old_release,
        proxied(old_release, drops=stripped) as url,
    ):
        result, findings = await doctor("--worker", url, "--probe", folder=tmp_path)
    assert result.exit_code == 1
    seen = levels(findings, url.removeprefix("http://"))
    assert (seen["X-Vllm-Priority"], seen["X-Session-ID"], seen["X-Request-Id"]) == ("warn", "fail", "skip")
    assert seen["KV event of a call"] == "ok"


async def test_a_release_whose_events_name_nobody_shows_nothing_of_the_header(tmp_path: Path) -> None:
    edit = replacing("/version", b"0.32.0", b"0.28.0")
    async with (
        emulated(kv_events_port=0) as emulator,
        proxied(emulator.url, drops=("x-session-id",), edit=edit) as url,
    ):
        _, findings = await doctor("--worker", url, "--probe", folder=tmp_path)
    assert findings[url.removeprefix("http://"), "X-Session-ID"]["level"] == "skip"


async def test_cached_tokens_that_are_not_told(tmp_path: Path) -> None:
    edit = replacing("/v1/completions", WARM, b'"something_else"')
    async with emulated() as emulator, proxied(emulator.url, edit=lambda p, b: edit(p, b) if WARM in b else b) as url:
        _, findings = await doctor("--worker", url, "--probe", folder=tmp_path)
    found = findings[url.removeprefix("http://"), "cached tokens"]
    assert found["level"] == "warn" and "--enable-prompt-tokens-details" in found["fix"]


async def test_one_url_before_several_engines(tmp_path: Path) -> None:
    """A load balancer that takes turns: the same prompt meets two caches."""
    turn = 0

    async def other_turn(request: web.Request) -> web.Response | None:
        nonlocal turn
        turn += request.path == "/v1/completions"
        if request.path != "/v1/completions" or turn % 2:
            return None
        async with other_session.request("POST", two.url + request.path, data=await request.read()) as response:
            return web.Response(status=response.status, body=await response.read(), content_type="application/json")

    async with (
        emulated() as one,
        emulated() as two,
        aiohttp.ClientSession() as other_session,
        proxied(one.url, instead=other_turn) as url,
    ):
        _, findings = await doctor("--worker", url, "--probe", folder=tmp_path)
    found = findings[url.removeprefix("http://"), "cached tokens"]
    assert found["level"] == "warn" and "several engines" in found["fix"]


async def test_events_of_another_engine(tmp_path: Path) -> None:
    async with emulated(kv_events_port=0) as one, emulated(kv_events_port=0) as other:
        wrong = other.kv_event_sources()["0"]["endpoint"].replace("*", "127.0.0.1")
        config = fabric_toml(tmp_path, {"url": one.url, "name": "a", "kv_events_endpoint": wrong})
        result, findings = await doctor("-c", config, "--probe", folder=tmp_path)
    assert findings["a", "KV event of a call"]["level"] == "fail" and result.exit_code == 1


async def test_a_local_tokenizer_that_is_the_engines(tmp_path: Path, directory: Path) -> None:
    async with emulated() as emulator, proxied(emulator.url, instead=tokenizing(directory)) as url:
        config = fabric_toml(tmp_path, {"url": url, "name": "a"}, tokenizer=str(directory))
        _, findings = await doctor("-c", config, folder=tmp_path)
    assert levels(findings, "a")["tokens of chats"] == levels(findings, "a")["tokens of texts"] == "ok"


async def test_a_local_tokenizer_that_is_not_the_engines(tmp_path: Path, directory: Path) -> None:
    async with emulated(kv_events_port=0) as emulator:
        config = fabric_toml(tmp_path, {"url": emulator.url, "name": "a"}, tokenizer=str(directory))
        result, findings = await doctor("-c", config, "--probe", folder=tmp_path)
    seen = levels(findings, "a")
    assert seen["tokens of chats"] == seen["tokens of texts"] == seen["hash agreement"] == "fail"
    assert "from token 0 on" in findings["a", "tokens of texts"]["seen"] and result.exit_code == 1


async def test_tokens_that_differ_late_say_where(tmp_path: Path, directory: Path) -> None:
    same = tokenizing(directory)

    async def one_other(request: web.Request) -> web.Response | None:
        answer = await same(request)
        if answer is None or answer.text is None:
            return None
        tokens = json.loads(answer.text)["tokens"]
        return web.json_response({"tokens": [*tokens[:7], tokens[7] + 1, *tokens[8:]]})

    async with emulated() as emulator, proxied(emulator.url, instead=one_other) as url:
        config = fabric_toml(tmp_path, {"url": url, "name": "a"}, tokenizer=str(directory))
        _, findings = await doctor("-c", config, folder=tmp_path)
    assert (
        findings["a", "tokens of chats"]["level"] == "fail"
        and "from token 7 on" in findings["a", "tokens of chats"]["seen"]
    )


@pytest.mark.parametrize(("tokenizer", "level"), [("engine", "fail"), ("local", "skip"), ("/nowhere", "fail")])
async def test_an_engine_without_tokenize(tmp_path: Path, directory: Path, tokenizer: str, level: str) -> None:
    async def none(request: web.Request) -> web.Response | None:
        return web.Response(status=404) if request.path == "/tokenize" else None

    named = str(directory) if tokenizer == "local" else tokenizer
    async with emulated() as emulator, proxied(emulator.url, instead=none) as url:
        config = fabric_toml(tmp_path, {"url": url, "name": "a"}, tokenizer=named)
        _, findings = await doctor("-c", config, folder=tmp_path)
    assert findings["a", "tokens of texts" if tokenizer == "local" else "tokenizer"]["level"] == level


async def test_an_engine_that_takes_chats_only_and_one_that_generates_nothing(tmp_path: Path) -> None:
    refused: set[str] = {"/v1/completions"}

    async def refuse(request: web.Request) -> web.Response | None:
        return web.Response(status=404) if request.path in refused else None

    async with emulated() as emulator, proxied(emulator.url, instead=refuse) as url:
        _, findings = await doctor("--worker", url, "--probe", folder=tmp_path)
        subject = url.removeprefix("http://")
        assert findings[subject, "cached tokens"]["level"] == "ok"
        refused.add("/v1/chat/completions")
        _, findings = await doctor("--worker", url, "--probe", folder=tmp_path)
    assert findings[subject, "probe"]["level"] == "skip" and "404" in findings[subject, "probe"]["seen"]


async def test_an_engine_that_breaks_off(tmp_path: Path) -> None:
    async def broken(request: web.Request) -> web.Response | None:
        if request.path != "/v1/completions":
            return None
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with emulated() as emulator, proxied(emulator.url, instead=broken) as url:
        result, findings = await doctor("--worker", url, "--probe", folder=tmp_path)
    found = findings[url.removeprefix("http://"), "probe"]
    assert found["level"] == "fail" and "a tiny call failed" in found["seen"] and result.exit_code == 1


async def test_an_engine_that_goes_away_in_the_middle(tmp_path: Path) -> None:
    looked_at = False

    async def gone(request: web.Request) -> web.Response | None:
        nonlocal looked_at
        looked_at |= request.path == "/health"
        if not looked_at:
            return None
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with emulated() as emulator, proxied(emulator.url, instead=gone) as url:
        result, findings = await doctor("--worker", url, folder=tmp_path)
    found = findings[url.removeprefix("http://"), "reachable"]
    assert found["level"] == "fail" and "stopped answering" in found["seen"] and result.exit_code == 1

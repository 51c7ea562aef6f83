"""`amf workers` before a real gateway."""

import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
from doctor_kit import amf
from rich.console import Console

from amf.config import LimitsConfig, PoolConfig, ServeConfig, ServerConfig, WorkerConfig
from amf.emulator import EmulatorConfig, running
from amf.engines.engine import Capabilities
from amf.gateway.service import Gateway, running_gateway
from amf.workers.lacks import INSTEAD, lacks_of, offers
from amf.workers.show import show

FAST = EmulatorConfig(time_scale=1000.0, kv_tokens=65_536)
LIMITS = LimitsConfig(retry_min_s=0.02, retry_max_s=0.05)


@asynccontextmanager
async def gateway(*workers: WorkerConfig, exact: bool = False, **server: Any) -> AsyncIterator[Gateway]:
    config = ServeConfig(
        server=ServerConfig(port=0, shutdown_grace_s=0.5, **server),
        workers=workers,
        limits=LIMITS,
        pools={"llama-3.1-8b": PoolConfig(tokenizer="engine")} if exact else {},
    )
    async with running_gateway(config) as gateway:
        yield gateway


async def test_what_each_is_lacks_and_could_share(tmp_path: Path) -> None:
    report = tmp_path / "workers.json"
    async with (
        running(replace(FAST, kv_events_port=0)) as one,
        running(replace(FAST, kv_events_port=0)) as two,
        running(replace(FAST, block_tokens=32)) as three,
        gateway(
            WorkerConfig(url=one.url, name="a"),
            WorkerConfig(url=two.url, name="b"),
            WorkerConfig(url=three.url, name="c", priority=True),
            WorkerConfig(url="http://127.0.0.1:9", name="d"),
            exact=True,
        ) as running_one,
    ):
        result = await amf("workers", "--gateway", running_one.url + "/v1", "--json", report)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    a = next(line for line in lines if line.startswith("a "))
    assert "vllm 0.32.0" in a and "up" in a and "65,536" in a and "events, token hashes, request ids" in a
    assert any(line.startswith("d ") and "connecting" in line and "no connection" in line for line in lines)
    assert any(line.startswith("No KV events (c): warmth is predicted") for line in lines)
    assert any(line.startswith("No priority (a, b): ") for line in lines)
    assert "  1  a, b" in lines and "  2  c" in lines
    assert any(
        line.startswith("  1 | 2: the same values in another form (tokens in a block: 16, 32)") for line in lines
    )
    assert all(line == line.rstrip() for line in lines)

    told = json.loads(report.read_text())
    assert told["families"] == [["a", "b"], ["c"]]
    assert [(each["one"], each["other"], each["grade"]) for each in told["apart"]] == [("a", "c", "partial")]
    listed = {worker["name"]: worker for worker in told["workers"]}
    assert set(listed["a"]["capabilities"]) == {field.name for field in fields(Capabilities)}
    assert (listed["a"]["exact"], listed["a"]["root"], listed["a"]["kv_format"]) == (True, "llama-3.1-8b", "fp8")
    assert listed["c"]["capabilities"]["priority"] == "lower-first" and listed["d"]["capabilities"] is None
    assert told["lacks"][0]["workers"] == ["c"]


def test_a_large_fleet_is_shown_in_few_lines() -> None:
    """Thirty workers of thirty models: 435 pairs of families."""
    workers = [{**listed(f"w{i:02}"), "pool": f"m{i}", "engine": "vllm", "fabric": None} for i in range(30)]
    console = Console(file=io.StringIO(), width=200)
    show(workers, console)
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue().splitlines()
    assert (
        "No priority (all 30): the engine serves in its own order; urgency counts in the fabric's queue alone."
        in printed
    )
    assert printed[-1] == "  and 415 more pairs: --json has all"
    assert printed[-2] == "  1 | 21: other values (other models: m0, m20)"


async def test_a_gateway_without_workers() -> None:
    async with gateway() as empty:
        result = await amf("workers", "--gateway", empty.url)
    assert result.exit_code == 0 and "POST /amf/v1/workers" in result.output


async def test_a_gateway_with_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AMF_API_KEY", raising=False)
    async with gateway(api_keys=("sesame",)) as locked:
        result = await amf("workers", "--gateway", locked.url)
        assert result.exit_code == 2 and "AMF_API_KEY" in result.output
        assert (await amf("workers", "--gateway", locked.url, "--api-key", "sesame")).exit_code == 0
        monkeypatch.setenv("AMF_API_KEY", "sesame")
        assert (await amf("workers", "--gateway", locked.url)).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--gateway", "127.0.0.1:8080"), "http://HOST:PORT"),
        (("--gateway", "http://127.0.0.1:9"), "amf serve"),
        (("--json", "/nowhere/at/all.json"), "--json"),
    ],
)
async def test_mistakes_end_with_2_and_a_remedy(arguments: tuple[str, ...], word: str) -> None:
    result = await amf("workers", *arguments)
    assert result.exit_code == 2 and word in result.output and "Traceback" not in result.output


def test_every_capability_has_its_rule() -> None:
    """Ranks apart: a worker with one has one cache, and lacks nothing."""
    assert [name for name, _, _ in INSTEAD] == [field.name for field in fields(Capabilities) if field.name != "ranks"]


def listed(name: str, *, exact: bool = False, **capabilities: Any) -> dict[str, Any]:
    return {"name": name, "exact": exact, "capabilities": asdict(Capabilities(**capabilities))}


def test_nothing_is_lacking_where_everything_is_offered() -> None:
    everything = {
        "kv_events": True,
        "token_hashes": True,
        "attributed_events": True,
        "priority": "lower-first",
        "token_prompts": True,
    }
    everything |= {"tokenize": True, "retention": True, "release": True, "tiers": ("CPU",), "lora": True}
    assert lacks_of([listed("a", exact=True, **everything)]) == []
    said = offers(listed("a", ranks=2, **everything)["capabilities"])
    assert said.startswith("events, token hashes, request ids, token prompts, tokenize, retention, release, LoRA")
    assert said.endswith("priority lower-first, tiers CPU, 2 ranks")


def test_events_are_matched_by_tokens_or_by_request() -> None:
    """Those that do not come can name nothing: one lack, not three. Who was never asked lacks nothing that is known."""
    silent, exact, text = listed("a"), listed("b", exact=True, kv_events=True), listed("c", kv_events=True)
    lacks = {lack.name: lack.workers for lack in lacks_of([silent, exact, text, {"name": "d", "capabilities": None}])}
    assert lacks["KV events"] == ("a",)
    assert lacks["events that name tokens"] == ("b",) and lacks["events that name requests"] == ("c",)
    assert lacks["priority"] == ("a", "b", "c")
    assert offers(None) == "?" and offers(silent["capabilities"]) == "generates"

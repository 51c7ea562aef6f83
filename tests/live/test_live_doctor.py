"""`amf doctor` on a real vLLM that was started as docs/engines.md says."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from amf.cli import app
from real.server import MODEL_NAME, Server, Setup, vllm

SETUP = Setup(kv_blocks=129, token_budget=512, scheduling="priority")
UNSEEN = {"X-Vllm-Priority", "KV format"}  # vLLM 0.32 takes any priority; and it says "auto"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with vllm(SETUP, tmp_path_factory.mktemp("vllm")) as server:
        yield server


def test_it_finds_nothing_to_mend(server: Server, tmp_path: Path) -> None:
    config, report = tmp_path / "fabric.toml", tmp_path / "findings.json"
    config.write_text(
        f'[[worker]]\nurl = "{server.url}"\nname = "v"\npriority = true\n'
        f'[pools.{MODEL_NAME}]\ntokenizer = "{server.log.parent / "model"}"\n'
    )
    result = CliRunner().invoke(app, ["doctor", "-c", str(config), "--probe", "--json", str(report)])
    findings = json.loads(report.read_text())["findings"]
    seen = {finding["check"]: finding["level"] for finding in findings}
    assert {check for check, level in seen.items() if level != "ok"} == UNSEEN, result.output
    assert {"prefix caching", "KV replay", "tokens of chats", "hash agreement", "cached tokens", "priority"} < set(seen)
    assert result.exit_code == 0

"""`amf doctor --gateway`: a real gateway before emulated engines, and proxies before the gateway."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from doctor_kit import amf, doctor, emulated, levels, proxied

from amf.config import LimitsConfig, ServeConfig, ServerConfig, WorkerConfig
from amf.gateway.service import Gateway, running_gateway

LIMITS = LimitsConfig(retry_min_s=0.02, retry_max_s=0.05)


@asynccontextmanager
async def gateway(*urls: str, **server: object) -> AsyncIterator[Gateway]:
    workers = tuple(WorkerConfig(url=url, name=f"w{i}") for i, url in enumerate(urls))
    settings = ServerConfig(port=0, shutdown_grace_s=0.5, **server)  # type: ignore[arg-type]
    async with running_gateway(ServeConfig(server=settings, workers=workers, limits=LIMITS)) as running:
        yield running


async def test_a_gateway_that_is_reached_directly(tmp_path: Path) -> None:
    async with emulated() as emulator, gateway(emulator.url) as running:
        result, findings = await doctor("--gateway", running.url, folder=tmp_path)
        seen = levels(findings, "gateway")
        assert seen.pop("session headers") == "skip" and set(seen.values()) == {"ok"}, result.output
        assert emulator.worker.stats.output_tokens == 1  # what it cost
        result, findings = await doctor("--gateway", running.url + "/v1", "--probe", folder=tmp_path)
    seen = levels(findings, "gateway")
    assert set(seen.values()) == {"ok"} and {"x-session-id", "session_id", "baggage", "traceparent"} <= set(seen)
    assert result.exit_code == 0


async def test_a_proxy_that_strips_request_headers(tmp_path: Path) -> None:
    stripped = ("x-amf-branch", "x-amf-run-id", "session_id")
    async with (
        emulated() as emulator,
        gateway(emulator.url) as running,
        proxied(running.url, drops=stripped) as url,
    ):
        result, findings = await doctor("--gateway", url, "--probe", folder=tmp_path)
    seen = levels(findings, "gateway")
    assert (seen["x-amf-* to the gateway"], seen["headers of answers"]) == ("fail", "fail")
    assert (seen["session_id"], seen["x-session-id"]) == ("warn", "ok")
    assert "underscores_in_headers" in findings["gateway", "session_id"]["fix"] and result.exit_code == 1


async def test_a_proxy_that_strips_the_headers_of_answers(tmp_path: Path) -> None:
    async with (
        emulated() as emulator,
        gateway(emulator.url) as running,
        proxied(running.url, drops_back=("x-amf-worker", "date", "server")) as url,
    ):
        _, findings = await doctor("--gateway", url, folder=tmp_path)
    found = findings["gateway", "headers of answers"]
    assert found["level"] == "fail" and "x-amf-worker" in found["seen"] and "x-amf-run-id" not in found["seen"]
    assert findings["gateway", "x-amf-* to the gateway"]["level"] == "ok"


async def test_workers_that_are_not_up(tmp_path: Path) -> None:
    async with emulated() as emulator:
        async with gateway(emulator.url, "http://127.0.0.1:9") as running:
            _, findings = await doctor("--gateway", running.url, folder=tmp_path)
        assert (
            findings["gateway", "workers"]["level"] == "warn"
            and "w1 connecting" in findings["gateway", "workers"]["seen"]
        )
    async with gateway("http://127.0.0.1:9") as running:
        result, findings = await doctor("--gateway", running.url, folder=tmp_path)
    assert levels(findings, "gateway")["workers"] == "fail" and result.exit_code == 1
    assert levels(findings, "gateway")["headers of answers"] == "skip"


async def test_a_gateway_with_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AMF_API_KEY", raising=False)
    async with emulated() as emulator, gateway(emulator.url, api_keys=("sesame",)) as running:
        result, findings = await doctor("--gateway", running.url, folder=tmp_path)
        assert result.exit_code == 1 and "AMF_API_KEY" in findings["gateway", "reachable"]["seen"]
        monkeypatch.setenv("AMF_API_KEY", "sesame")
        result, findings = await doctor("--gateway", running.url, folder=tmp_path)
    assert result.exit_code == 0 and "sesame" not in result.output


async def test_an_engine_is_no_gateway(tmp_path: Path) -> None:
    async with emulated() as emulator:
        result, findings = await doctor("--gateway", emulator.url, folder=tmp_path)
        assert "no gateway of AMF" in findings["gateway", "reachable"]["seen"] and result.exit_code == 1
        result = await amf("workers", "--gateway", emulator.url)
    assert result.exit_code == 2 and "no gateway of AMF" in result.output

"""API keys share a pool through a live gateway: a flood of deadlines does not always go first, and a weight is a part."""

import asyncio
import json
from pathlib import Path

import aiohttp
import pytest
from gateway_kit import Client, fake_engine, until

from amf.config import config_from_dict
from amf.gateway.replay import replay
from amf.gateway.service import running_gateway


@pytest.mark.parametrize(("weight", "order"), [(1.0, "fmfmff"), (3.0, "fmmfff")])
async def test_keys_share_a_pool(weight: float, order: str, tmp_path: Path) -> None:
    """One place on one worker, taken; then four calls of one key with deadlines, and two of another without."""
    journal = tmp_path / "j.jsonl"
    async with fake_engine() as engine:
        engine.fault = "hold"
        document = {
            "server": {"port": 0, "api_keys": ["flood-key", "modest-key"], "shutdown_grace_s": 0.5},
            "fabric": {"fair_burst_tokens": 0, "tenant_weights": {"modest-key": weight}},
            "worker": [{"url": engine.url, "max_running": 1}],
            "journal": {"path": str(journal)},
        }
        async with running_gateway(config_from_dict(document)) as gateway, aiohttp.ClientSession() as session:
            client, pool = Client(gateway.url, session), gateway.fabric.book.pools["tiny"]
            asked = [asyncio.create_task(client.chat("start", headers={"x-api-key": "flood-key"}))]
            await until(lambda: engine.running == 1)
            for number, key in enumerate(["flood-key"] * 4 + ["modest-key"] * 2, start=1):
                headers = {"x-api-key": key} | ({"x-amf-deadline-ms": "60000"} if key == "flood-key" else {})
                asked.append(asyncio.create_task(client.chat(f"{key[0]}{number}", headers=headers)))
                await until(lambda number=number: len(pool.waiting) == number)
            engine.release.set()
            assert [answer.status for answer in await asyncio.gather(*asked)] == [200] * 7
    contents = [json.loads(body)["messages"][-1]["content"] for body in engine.bodies]
    assert "".join(content[0] for content in contents[1:]) == order
    assert "modest-key" not in journal.read_text()
    assert replay(journal).differences == ()

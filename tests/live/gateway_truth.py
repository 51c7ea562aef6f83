"""What a gateway must make of a real engine that tells its cache and names requests in its events, whichever engine it is.

A module of tests derives a class from `GatewayTruth` and gives it a fixture `on` that says where the engine is.
"""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import aiohttp

from amf.config import PoolConfig, ServeConfig, ServerConfig, WorkerConfig
from amf.core.config import FabricConfig
from amf.gateway.service import running_gateway
from contract.under_test import prompt
from engine_belief import until
from real.server import MODEL_NAME


@dataclass(frozen=True, kw_only=True)
class On:
    """An engine that nobody else uses."""

    url: str
    block_tokens: int
    kv_tokens: int

    def config(self, **more: Any) -> ServeConfig:
        return ServeConfig(
            server=ServerConfig(port=0), workers=(WorkerConfig(url=self.url, name="w0", priority=True),), **more
        )


def cached(usage: dict[str, Any]) -> int:
    return (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0


class GatewayTruth:
    async def test_the_gateway_predicts_what_the_engine_finds(self, on: On) -> None:
        """Exact mode: chat is tokenised by the engine, warmth is what its events say, and its own count agrees."""
        messages = [{"role": "user", "content": "baceni dofugu " * 120}]
        config = on.config(pools={MODEL_NAME: PoolConfig(tokenizer="engine")})
        async with running_gateway(config) as gateway, aiohttp.ClientSession() as client:
            for turn in range(3):
                body = {"model": MODEL_NAME, "messages": messages, "max_tokens": 20, "ignore_eos": True}
                async with client.post(gateway.url + "/v1/chat/completions", json=body) as response:
                    told = json.loads(await response.read())
                    assert response.status == 200, told
                warm, found = int(response.headers["x-amf-warm-tokens"]), cached(told["usage"])
                assert (found > 300) == (turn > 0)
                assert abs(warm - found) <= on.block_tokens, (turn, warm, found)
                messages += [told["choices"][0]["message"], {"role": "user", "content": f"next {turn}"}]
                await until(lambda: gateway.driver.open_calls() == 0)
            gateway.fabric.check_invariants()

    async def test_text_follows_evictions_that_the_gateway_did_not_cause(self, on: On) -> None:
        """Text mode: events name the request that stored a block, and so what traffic around the gateway pushed out is
        known."""
        config = on.config(fabric=FabricConfig(event_lag_s=0.2))
        body = {"model": MODEL_NAME, "max_tokens": 20, "ignore_eos": True}
        body["messages"] = [{"role": "user", "content": "gulopa sedi " * 120}]
        async with running_gateway(config) as gateway, aiohttp.ClientSession() as client:

            async def ask() -> tuple[int, int]:
                async with client.post(gateway.url + "/v1/chat/completions", json=body) as response:
                    told = json.loads(await response.read())
                    assert response.status == 200, told
                return int(response.headers["x-amf-warm-tokens"]), cached(told["usage"])

            seen = gateway.metrics.events
            assert (await ask())[0] == 0
            await until(lambda: seen.labels("PrefixStored")._value.get() > 0)
            for _ in range(3):  # until the length of a token is known
                await ask()
            await asyncio.sleep(2 * config.fabric.event_lag_s)  # what was predicted counts no more
            warm, found = await ask()
            assert found > 300 and abs(warm - found) < 0.1 * found + 2 * on.block_tokens, (warm, found)
            for number in range(2 * on.kv_tokens // 320):
                filler = {"model": MODEL_NAME, "prompt": prompt(f"filler {number}", 325), "max_tokens": 1}
                async with client.post(on.url + "/v1/completions", json=filler) as response:
                    assert response.status == 200
            await until(lambda: seen.labels("PrefixEvicted")._value.get() > 0)
            await asyncio.sleep(2 * config.fabric.event_lag_s)
            warm, found = await ask()
            assert found == 0 and warm < 2 * on.block_tokens, (warm, found)
            gateway.fabric.check_invariants()

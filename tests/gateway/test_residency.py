"""A gateway that asks LMCache's controller where prompts lie. The engines have no KV events; the controller is a fake."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
from gateway_kit import Client, FakeEngine, WatchedFabric, config, fake_engine, until

from amf.config import PoolConfig
from amf.core.events import PrefixEvicted, PrefixStored, WorkerJoined
from amf.core.types import Tier
from amf.engines.options import ResidencyOptions
from amf.gateway.service import running_gateway
from fake_lmcache import CHUNK_TOKENS, DISK, FAULTS, FakeController, fake_controller

INSTANCES = ("a", "b")
PATIENT = ResidencyOptions(delay_s=10.0, timeout_s=20.0)
SYSTEM = "You help."


@dataclass
class Stage:
    client: Client
    lmcache: FakeController
    fabric: WatchedFabric
    engines: list[FakeEngine]

    async def warm_tokens(self, *texts: str, **more: Any) -> int:
        answer = await self.client.chat(*texts, **more)
        assert answer.status == 200, answer.body
        return int(answer.headers["x-amf-warm-tokens"])

    def news(self, kind: type) -> list[tuple[str, Tier, int]]:
        """(worker, tier, blocks) of the events of that kind."""
        return [(e.name, e.tier, len(e.keys)) for e in self.fabric.events if isinstance(e, kind)]

    async def metric(self, name: str) -> float:
        page = (await self.client.request("GET", "/metrics")).body.decode()
        return next((float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(name)), 0.0)


@asynccontextmanager
async def stage(workers: int = 1, options: ResidencyOptions = PATIENT, **more: Any) -> AsyncIterator[Stage]:
    """Workers w0, w1 that are the instances a, b. `exact` False: prompts are hashed text. `worker`: more keys of them all."""
    exact, keys = more.pop("exact", True), more.pop("worker", {})
    fabric = WatchedFabric()
    async with fake_controller(*INSTANCES) as lmcache, fake_engine() as one, fake_engine() as two:
        engines = [one, two][:workers]
        base = config(*engines, policy="fabric", residency=replace(options, url=options.url or lmcache.url), **more)
        named = zip(base.workers, INSTANCES, strict=False)
        settings = replace(
            base,
            workers=tuple(replace(worker, lmcache_instance=name, **keys) for worker, name in named),
            pools={"tiny": PoolConfig(tokenizer="engine")} if exact else {},
        )
        async with running_gateway(settings, fabric) as gateway, aiohttp.ClientSession() as session:
            yield Stage(Client(gateway.url, session), lmcache, fabric, engines)


def tokens_of(text: str) -> list[int]:
    """As the fake engine tokenises a chat of one message."""
    return [ord(c) for c in SYSTEM + text]


P, Q = "p" * 6000, "q" * 6000


async def test_a_call_goes_where_lmcache_holds_its_prompt() -> None:
    async with stage(workers=2) as it:
        assert await it.warm_tokens(Q) == 0  # and by the order of names it went to w0
        it.lmcache.hold("b", tokens_of(P))
        answer = await it.client.chat(P)
        assert answer.headers["x-amf-worker"] == "w1"
        assert int(answer.headers["x-amf-warm-tokens"]) == 6009 // CHUNK_TOKENS * CHUNK_TOKENS
        assert it.news(PrefixStored) == [("w1", Tier.DRAM, 5888 // 16)]
        assert await it.metric('amf_residency_lookups_total{outcome="in_time"}') == 2
        assert await it.metric('amf_residency_tokens_total{kind="found",worker="w1"}') == 5888


async def test_belief_of_the_lower_tier_is_corrected_both_ways() -> None:
    """The longer prompt pushes the other out of KV memory: then that is warm below it or not at all."""
    longer = "q" * 8000
    options = replace(PATIENT, fresh_s=0.0)
    async with stage(options=options, worker={"kv_tokens": 8192}) as it:
        it.lmcache.hold("a", tokens_of(P))
        assert await it.warm_tokens(P) == 5888
        await it.client.chat(longer)
        assert await it.warm_tokens(P) == 5888
        await it.client.chat(longer)
        it.lmcache.drop("a", tokens_of(P), keep_tokens=1024)
        assert await it.warm_tokens(P) == 1024
        assert it.news(PrefixEvicted) == [("w0", Tier.DRAM, (5888 - 1024) // 16)]
        it.lmcache.hold("a", tokens_of(longer), DISK)
        assert await it.warm_tokens(longer) == 7936
        assert it.news(PrefixStored)[-1] == ("w0", Tier.DISK, 7936 // 16)
        assert await it.metric('amf_residency_tokens_total{kind="gone",worker="w0"}') == 5888 - 1024


async def test_what_an_answer_leaves_open_stays_believed() -> None:
    """Each chunk is credited to one instance only: that b is not listed says nothing of what b holds below a's length."""
    async with stage(workers=2, options=replace(PATIENT, fresh_s=0.0)) as it:
        it.lmcache.hold("b", tokens_of(P))
        await it.client.chat(P)
        it.lmcache.hold("a", tokens_of(P))
        await it.client.chat(P)
        it.lmcache.drop("a", tokens_of(P), keep_tokens=2048)
        it.lmcache.drop("b", tokens_of(P), keep_tokens=2048)
        await it.client.chat(P)
    assert it.news(PrefixStored) == [("w1", Tier.DRAM, 368), ("w0", Tier.DRAM, 368)]
    assert sorted(it.news(PrefixEvicted)) == [("w0", Tier.DRAM, 240), ("w1", Tier.DRAM, 240)]


async def test_it_is_asked_when_much_of_a_prompt_is_new_and_not_again() -> None:
    async with stage() as it:
        for texts in ((P,), (P,), (P, "yes", "go on " * 100), ("short",)):
            await it.client.chat(*texts)
        assert it.lmcache.lookups() == 1
        await it.client.chat(P, "yes", "more " * 1000)
        assert it.lmcache.lookups() == 2
        for more in ({"cache_salt": "s"}, {"headers": {"x-amf-parents": "nobody", "x-amf-run-id": "r"}}):
            await it.client.chat(Q, **more)  # the controller knows no salts; a request that is turned away asks nobody
        assert it.lmcache.lookups() == 2
    async with stage(exact=False) as it:
        await it.client.chat(P)
        assert it.lmcache.lookups() == 0


async def test_calls_with_one_prompt_share_one_question() -> None:
    async with stage() as it:
        it.lmcache.hold("a", tokens_of(P))
        it.lmcache.fault = "slow"
        calls = [asyncio.create_task(it.warm_tokens(P)) for _ in range(5)]
        await until(lambda: it.lmcache.lookups() > 0, limit_s=30)
        it.lmcache.go_on.set()
        assert (
            sorted(await asyncio.gather(*calls)) == [5888] + [6000] * 4
        )  # the first one's prompt is in flight for the others
        assert it.lmcache.lookups() == 1


async def test_a_silent_controller_delays_a_call_by_its_limit_and_its_late_answer_counts() -> None:
    async with stage(options=replace(PATIENT, delay_s=0.02, timeout_s=60.0)) as it:
        it.lmcache.hold("a", tokens_of(P))
        it.lmcache.fault = "slow"
        assert await it.warm_tokens(P) == 0  # it has answered while the question was open
        assert it.news(PrefixStored) == []
        it.lmcache.go_on.set()
        await until(lambda: it.news(PrefixStored) == [("w0", Tier.DRAM, 368)], limit_s=30)
        assert await it.metric('amf_residency_lookups_total{outcome="late"}') == 1


async def test_a_question_may_be_open_when_the_gateway_stops() -> None:
    async with stage(options=replace(PATIENT, delay_s=0.0, timeout_s=60.0)) as it:
        it.lmcache.fault = "slow"
        assert await it.warm_tokens(P) == 0
        await until(lambda: it.lmcache.lookups() == 1, limit_s=30)
    assert it.news(PrefixStored) == []


async def test_a_failing_controller_is_left_alone() -> None:
    async with stage(options=replace(PATIENT, retry_s=1000.0)) as it:
        for number, fault in enumerate(FAULTS[:6]):
            it.lmcache.fault = fault
            assert await it.warm_tokens(f"{number}" + P) == 0
        assert it.lmcache.lookups() == 3 and await it.metric('amf_residency_lookups_total{outcome="failed"}') == 3
        assert await it.metric('amf_residency_lookups_total{outcome="skipped"}') == 3


async def test_a_controller_that_comes_back_is_asked_again() -> None:
    async with stage(options=replace(PATIENT, breaker_failures=1, retry_s=0.01)) as it:
        it.lmcache.fault = "500"
        it.lmcache.hold("a", tokens_of(Q))
        await it.client.chat(P)
        it.lmcache.fault = ""
        async with asyncio.timeout(20):
            while not it.news(PrefixStored):
                await it.client.chat(Q)
        assert it.lmcache.lookups() == 2


async def test_nobody_at_the_address() -> None:
    async with stage(options=replace(PATIENT, url="http://127.0.0.1:9")) as it:
        assert await it.warm_tokens(P) == 0
        assert await it.metric('amf_residency_lookups_total{outcome="failed"}') == 1


async def test_a_worker_that_joins_again_is_asked_about_again() -> None:
    """What was told of the old life is not taken for told, and not counted twice."""
    async with stage() as it:
        it.lmcache.hold("a", tokens_of(P))
        await it.client.chat(P)
        it.engines[0].healthy = False
        await until(lambda: it.fabric.inner.worker_reports() == [], limit_s=30)
        it.engines[0].healthy = True
        await until(lambda: sum(isinstance(event, WorkerJoined) for event in it.fabric.events) == 2, limit_s=30)
        assert await it.warm_tokens(P) == 5888
        assert it.lmcache.lookups() == 2
        assert it.news(PrefixStored) == [("w0", Tier.DRAM, 368)] * 2

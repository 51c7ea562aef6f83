"""Pipelines through the gateway over real engines: two vLLM replicas of one model and one of another. What the fabric claims is
looked for in the engines' own counters."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import aiohttp
import openai
import pytest
from e2e_kit import Watched, gateway_before, is_at_rest, samples, until
from openai import AsyncOpenAI

from amf.config import ServeConfig, ServerConfig, WorkerConfig
from amf.core.events import CallFinished, FirstToken
from amf.gateway.service import Gateway
from real.server import MODEL_NAME, Server, Setup, fleet

WRITER = Setup(kv_blocks=257, max_running=4, token_budget=1024, scheduling="priority")
REVIEWER = replace(WRITER, model="tiny-reviewer", layers=2, max_running=1, kv_blocks=513)
LONG_TOKENS = 15_000  # half a minute
TEXT = "baceni dofugu hajeki lomuna peri sotuva wezi " * 24
LIMIT_S = 60.0


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    with fleet([WRITER, WRITER, REVIEWER], tmp_path_factory.mktemp("fleet")) as servers:
        yield servers


@pytest.fixture
async def cold(servers: list[Server]) -> list[Server]:
    """The same servers with nothing cached."""
    async with aiohttp.ClientSession() as session:
        for server in servers:
            async with session.post(f"{server.url}/reset_prefix_cache") as response:
                assert response.status == 200
    return servers


def config(servers: list[Server], policy: str = "fabric") -> ServeConfig:
    workers = tuple(WorkerConfig(url=each.url, name=f"w{place}", priority=True) for place, each in enumerate(servers))
    return ServeConfig(server=ServerConfig(port=0), policy=policy, workers=workers)


def client_of(gateway: Gateway) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=LIMIT_S)


async def ask(client: AsyncOpenAI, messages: list[dict[str, str]], *, model: str = MODEL_NAME, **amf: Any) -> Any:
    """One hop of 20 tokens, and its answer put behind its messages. Returns the raw answer."""
    tokens = amf.pop("tokens", 20)
    raw = await client.chat.completions.with_raw_response.create(
        model=model,
        messages=messages,  # type: ignore[arg-type]
        max_tokens=tokens,
        extra_headers=amf.pop("headers", {}),
        extra_body={"ignore_eos": True, "amf": amf},
    )
    messages.append({"role": "assistant", "content": raw.parse().choices[0].message.content or ""})
    return raw


def usage(raw: Any) -> tuple[int, int]:
    """Prompt tokens, and how many of them were cached, as the engine told the client."""
    told = raw.parse().usage
    return told.prompt_tokens, (told.prompt_tokens_details and told.prompt_tokens_details.cached_tokens) or 0


def counted(server: Server) -> tuple[int, int]:
    """The same two by the engine's own counters, since it started."""
    told = samples(server.url)
    return round(told["vllm:prompt_tokens_total"]), round(told["vllm:prefix_cache_hits_total"])


async def counts(servers: list[Server]) -> list[tuple[int, int]]:
    return [await asyncio.to_thread(counted, server) for server in servers]


def since(before: list[tuple[int, int]], after: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return [(a[0] - b[0], a[1] - b[1]) for b, a in zip(before, after, strict=True)]


async def test_seven_hops_over_two_models(cold: list[Server]) -> None:
    """plan - outline - draft - review* - revise - verify* - answer, those with a star by the other model. The writer's hops go
    on from each other and so do the reviewer's; each model's stay where they are warm."""
    hops = ("plan", "outline", "draft", "review", "revise", "verify", "answer")
    before = await counts(cold)
    async with gateway_before(config(cold)) as (gateway, fabric), client_of(gateway) as client:
        histories: dict[str, list[dict[str, str]]] = {WRITER.model: [], REVIEWER.model: []}
        answers: dict[str, Any] = {}
        for place, hop in enumerate(hops):
            model = REVIEWER.model if hop in ("review", "verify") else WRITER.model
            histories[model].append({"role": "user", "content": f"{hop}: {TEXT}"})
            parents = {"parents": [hops[place - 1]]} if place else {}
            final = hop == hops[-1]
            told = {"model": model, "run_id": "essay", "pipeline": "essay", "hop": hop, "final": final, **parents}
            answers[hop] = await ask(client, histories[model], **told)
        await until(lambda: is_at_rest(fabric, gateway))
        async with aiohttp.ClientSession() as session, session.get(f"{gateway.url}/amf/v1/runs/essay") as response:
            run = await response.json()
    workers = {hop: raw.headers["x-amf-worker"] for hop, raw in answers.items()}
    home, other = ("w0", "w1") if workers["plan"] == "w0" else ("w1", "w0")
    assert workers == {hop: "w2" if hop in ("review", "verify") else home for hop in hops}
    assert run["status"] == "final" and set(run["hops"]) == set(hops), run
    used = dict.fromkeys(("w0", "w1", "w2"), (0, 0))
    for hop, raw in answers.items():
        prompt, cached = usage(raw)
        total = used[workers[hop]]
        used[workers[hop]] = (total[0] + prompt, total[1] + cached)
    assert since(before, await counts(cold)) == [used["w0"], used["w1"], used["w2"]]
    assert used[other] == (0, 0)
    for first, later in (
        ("plan", "outline"),
        ("outline", "draft"),
        ("draft", "revise"),
        ("revise", "answer"),
        ("review", "verify"),
    ):
        earlier_tokens, (_, cached_tokens) = usage(answers[first])[0], usage(answers[later])
        assert cached_tokens >= earlier_tokens - WRITER.block_tokens, (later, "begins with all of", first)


async def turns(servers: list[Server], policy: str) -> list[tuple[int, int]]:
    """Three sessions in turn, three calls each, so that round robin never comes back to the same replica."""
    replicas = servers[:2]
    before = await counts(replicas)
    async with gateway_before(config(replicas, policy)) as (gateway, fabric), client_of(gateway) as client:
        sessions: list[list[dict[str, str]]] = [[], [], []]
        for turn in range(3):
            for number, messages in enumerate(sessions):
                messages.append({"role": "user", "content": f"session {number}, {turn}: {TEXT}"})
                await ask(client, messages, run_id=f"s{number}")
        await until(lambda: is_at_rest(fabric, gateway))
    return since(before, await counts(replicas))


@pytest.mark.parametrize(("policy", "warm"), [("fabric", True), ("round-robin", False)])
async def test_warm_routing_is_seen_in_the_engines_counters(cold: list[Server], policy: str, warm: bool) -> None:
    seen = await turns(cold, policy)
    assert all(prompt > 0 for prompt, _ in seen), "both replicas had work"
    prompt, cached = (sum(column) for column in zip(*seen, strict=True))
    again = prompt / 2  # 1 + 2 + 3 texts a session, of which 0 + 1 + 2 have been there before
    assert (cached > 0.9 * again) == warm and (cached < 0.6 * again) != warm, (prompt, cached)


async def test_the_order_of_deadlines_is_the_order_of_completion(cold: list[Server]) -> None:
    """One slot, taken by a stream. Calls come latest deadline first, wait in the engine and end earliest first."""
    ended: list[str] = []
    reviewer = cold[2]
    deadlines_ms = {"patient": 900_000, "middling": 600_000, "urgent": 300_000}
    async with gateway_before(config([reviewer])) as (gateway, fabric), client_of(gateway) as client:

        async def one(run: str) -> None:
            headers = {"x-amf-deadline-ms": str(deadlines_ms[run])}
            await ask(client, [{"role": "user", "content": run}], model=REVIEWER.model, run_id=run, headers=headers)
            ended.append(run)

        occupying = await client.chat.completions.create(
            model=REVIEWER.model,
            messages=[{"role": "user", "content": "long"}],
            max_tokens=LONG_TOKENS,
            stream=True,
            extra_body={"ignore_eos": True, "amf": {"run_id": "long"}},
        )
        await until(lambda: bool(fabric.events(FirstToken)))
        async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
            for number, run in enumerate(deadlines_ms, start=1):
                group.create_task(one(run))
                while (await asyncio.to_thread(samples, reviewer.url))["vllm:num_requests_waiting"] < number:
                    await asyncio.sleep(0.02)
            await occupying.close()
        await until(lambda: is_at_rest(fabric, gateway))
    assert ended == ["urgent", "middling", "patient"]


async def test_a_client_that_leaves_frees_the_engines_blocks(cold: list[Server]) -> None:
    reviewer = cold[2]
    async with gateway_before(config([reviewer])) as (gateway, fabric), client_of(gateway) as client:
        stream = await client.chat.completions.create(
            model=REVIEWER.model,
            messages=[{"role": "user", "content": TEXT}],
            max_tokens=LONG_TOKENS,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        await until(lambda: bool(fabric.events(FirstToken)))
        busy = await asyncio.to_thread(samples, reviewer.url)
        assert busy["vllm:num_requests_running"] == 1 and busy["vllm:kv_cache_usage_perc"] > 0
        await stream.close()
        async with asyncio.timeout(10):
            while (told := await asyncio.to_thread(samples, reviewer.url))["vllm:num_requests_running"]:
                await asyncio.sleep(0.02)
        assert told["vllm:kv_cache_usage_perc"] == 0
        await until(lambda: is_at_rest(fabric, gateway))
        assert not fabric.events(CallFinished)


async def session(client: AsyncOpenAI, run: str, ends: dict[str, str | None]) -> None:
    """Four calls, the odd ones streamed; a stream that breaks ends it."""
    messages: list[dict[str, str]] = []
    for number in range(4):
        name = f"{run}/{number}"
        messages.append({"role": "user", "content": f"{run}, {number}: {TEXT}"})
        if number % 2 == 0:
            await ask(client, messages, run_id=run, tokens=60, hop=str(number))
            ends[name] = None
            continue
        ends[name] = await streamed(client, messages, {"run_id": run, "hop": str(number)})
        if ends[name] is not None:
            return


async def streamed(client: AsyncOpenAI, messages: list[dict[str, str]], amf: dict[str, Any]) -> str | None:
    """The error that broke it, or None."""
    from_openai = await client.chat.completions.create(
        model=MODEL_NAME,
        messages=messages,  # type: ignore[arg-type]
        max_tokens=60,
        stream=True,
        extra_body={"ignore_eos": True, "amf": amf},
    )
    text = ""
    try:
        async for chunk in from_openai:
            text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
    except openai.APIError as error:
        return str(error.code)
    messages.append({"role": "assistant", "content": text})
    return None


def has_work(fabric: Watched, name: str) -> bool:
    return any(worker["name"] == name and worker["running"] for worker in fabric.worker_reports())


def moved(fabric: Watched, dead: str) -> int:
    """Calls that were given to the worker that died and then to another."""
    calls = {each.call_id for each in fabric.dispatches() if each.attempt > 1}
    return len([call_id for call_id in calls if dead in fabric.workers_of(call_id)[:-1]])


def broken_streams(fabric: Watched, dead: str) -> int:
    """Calls that had begun to answer on the worker that died, and did not come to their end."""
    begun = {
        event.call_id
        for event in fabric.events(FirstToken)
        if fabric.workers_of(event.call_id)[event.attempt - 1] == dead
    }
    return len([call_id for call_id in begun if not fabric.events(CallFinished, call_id)])


async def test_an_engine_killed_in_mid_run_is_survived(tmp_path: Any) -> None:
    ends: dict[str, str | None] = {}
    with fleet([WRITER, WRITER], tmp_path) as servers:
        async with gateway_before(config(servers)) as (gateway, fabric), client_of(gateway) as client:
            async with asyncio.timeout(3 * LIMIT_S), asyncio.TaskGroup() as group:
                for number in range(8):
                    group.create_task(session(client, f"run-{number}", ends))
                await until(lambda: len(fabric.events(CallFinished)) >= 6, LIMIT_S)
                await until(lambda: has_work(fabric, "w0"), LIMIT_S)
                servers[0].kill()
            await until(lambda: is_at_rest(fabric, gateway), LIMIT_S)
            assert gateway.fleet.describe("w0")["status"] == "lost"
            broken, saved = broken_streams(fabric, "w0"), moved(fabric, "w0")
    assert broken + saved > 0, "the kill must hit calls, or it proves nothing"
    assert [code for code in ends.values() if code is not None] == ["upstream_failed"] * broken
    whole = [run for run in range(8) if ends.get(f"run-{run}/3", "missing") is None]
    assert len(whole) == 8 - broken, "whoever saw no broken stream was served to the end"

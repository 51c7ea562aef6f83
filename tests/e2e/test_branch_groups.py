"""Alternatives launched with the `openai` package on emulated engines: what is not wanted ends, on all sides and at once, and
no client asks for it again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest
from e2e_kit import (
    MODEL,
    House,
    Watched,
    gateway_before,
    house,
    is_at_rest,
    is_idle,
    processes,
    samples,
    serve_config,
    until,
)
from openai import AsyncOpenAI

from amf.core.events import FirstToken
from amf.emulator import EmulatorConfig
from amf.gateway.replay import replay
from amf.gateway.service import Gateway

SCALE = 2.0
CONTEXT = "One of several attempts at the same task, of which a test will choose. " * 40
LONG = 30_000  # tokens: a stream that lasts for longer than a test


@dataclass
class Attempt:
    """One streamed alternative as its client sees it."""

    branch: str
    text: str = ""
    error: openai.APIError | None = None
    is_done: bool = False


@dataclass
class Agent:
    """The run r, through a client that would try again twice."""

    client: AsyncOpenAI
    root: str
    attempts: dict[str, Attempt] = field(default_factory=dict)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def launch(self, *branches: str, tokens: int = LONG) -> None:
        """Each at once, and all of them needed; returns when every one has begun."""
        for branch in branches:
            self.attempts[branch] = Attempt(branch)
            self.tasks.append(asyncio.create_task(self._stream(self.attempts[branch], tokens)))
        await until(lambda: all(self.attempts[branch].text for branch in branches))

    async def ask(self, tokens: int = 20, **amf: Any) -> Any:
        """A call that is not streamed, with its headers."""
        return await self.client.chat.completions.with_raw_response.create(**self._call("next", tokens, amf))

    async def commit(self, **decision: Any) -> Any:
        return await self.client.post(f"{self.root}/amf/v1/runs/r/commit", cast_to=object, body=decision)

    async def _stream(self, attempt: Attempt, tokens: int) -> None:
        group, _, alternative = attempt.branch.rpartition("/")
        branch = {"group": group, "alternative": alternative, "kind": "best_of"}
        amf = {"hop": f"try {attempt.branch}", "branch": branch}
        try:
            stream = await self.client.chat.completions.create(**self._call(attempt.branch, tokens, amf), stream=True)
            async for chunk in stream:
                attempt.text += chunk.choices[0].delta.content or ""
            attempt.is_done = True
        except openai.APIError as error:
            attempt.error = error

    def _call(self, words: str, tokens: int, amf: dict[str, Any]) -> dict[str, Any]:
        messages = [{"role": "user", "content": f"{CONTEXT} {words}"}]
        body = {"ignore_eos": True, "amf": {"run_id": "r", **amf}}
        return {"model": MODEL, "messages": messages, "max_tokens": tokens, "extra_body": body}


@asynccontextmanager
async def agent_before(gateway: Gateway) -> AsyncIterator[Agent]:
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=2, timeout=30.0) as client:
        agent = Agent(client, gateway.url)
        try:
            yield agent
        finally:
            for task in agent.tasks:
                task.cancel()
            await asyncio.gather(*agent.tasks, return_exceptions=True)


def two_workers() -> list[EmulatorConfig]:
    return [EmulatorConfig(model=MODEL, time_scale=SCALE)] * 2


def running(built: House) -> int:
    """Requests in the emulated engines."""
    return sum(emulator.live.pending for emulator in built.emulators)


async def reported(built: House, name: str) -> float:
    """A gauge of the engines themselves, summed."""
    found = [await asyncio.to_thread(samples, emulator.url) for emulator in built.emulators]
    return sum(each[f"vllm:{name}"] for each in found)


def lost(agent: Agent) -> set[str]:
    """Alternatives whose clients were told that they have lost. Every error is that one."""
    errors = {name: attempt.error for name, attempt in agent.attempts.items() if attempt.error is not None}
    assert all(error.code == "branch_cancelled" for error in errors.values())
    return set(errors)


async def test_a_commit_ends_the_losers_everywhere_and_nobody_asks_again(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    async with house(*two_workers(), journal=journal) as built, agent_before(built.gateway) as agent:
        await agent.launch("drafts/a", "drafts/b")
        whole = asyncio.create_task(agent.ask(LONG, branch="drafts/c", hop="try drafts/c"))  # it waits for its answer
        await until(lambda: running(built) == 3)
        answer = await agent.commit(group="drafts", commit="a")
        assert answer["cancelled_calls"] == 2
        with pytest.raises(openai.APIStatusError) as caught:
            await whole
        assert (caught.value.status_code, caught.value.code) == (410, "branch_cancelled")
        assert caught.value.response.headers["x-should-retry"] == "false"
        await until(lambda: running(built) == 1 and lost(agent) == {"drafts/b"})
        assert await reported(built, "num_requests_running") == 1
        with pytest.raises(openai.APIStatusError) as caught:
            await agent.ask(branch="drafts/b")
        assert caught.value.code == "branch_cancelled"
        assert len(built.fabric.dispatches()) == 3, "neither the losers nor the one that came late were sent again"
        assert built.requests()[410] == 2
        assert built.count("amf_branch_calls_cancelled_total", stage="running") == 2
        assert built.count("amf_branch_calls_cancelled_total", stage="late") == 1
        assert not agent.attempts["drafts/a"].error
        await agent.commit(group="drafts", discard="a")  # too late: what was decided stays so
        assert running(built) == 1
        agent.tasks[0].cancel()
        await until(lambda: is_at_rest(built.fabric, built.gateway))
        await until(lambda: running(built) == 0)
        assert [await asyncio.to_thread(is_idle, each.url) for each in built.emulators] == [True, True]
    assert replay(journal).differences == ()


async def test_the_winner_comes_to_its_end_while_the_losers_go() -> None:
    async with house(*two_workers()) as built, agent_before(built.gateway) as agent:
        await agent.launch("drafts/b", "drafts/c")
        await agent.launch("drafts/a", tokens=300)
        await agent.commit(group="drafts", commit=["a"])
        await until(lambda: agent.attempts["drafts/a"].is_done and lost(agent) == {"drafts/b", "drafts/c"})
        assert len(agent.attempts["drafts/a"].text) == 300 * 4, "an answer is whole"
        await until(lambda: is_at_rest(built.fabric, built.gateway) and running(built) == 0)


async def test_when_all_have_failed_their_memory_is_free_and_the_run_goes_on() -> None:
    async with house(*two_workers()) as built, agent_before(built.gateway) as agent:
        await agent.launch("drafts/a", "drafts/b", "drafts/c")
        assert await reported(built, "kv_cache_usage_perc") > 0
        assert (await agent.commit(group="drafts", discard=["a", "b", "c"]))["cancelled_calls"] == 3
        await until(lambda: lost(agent) == set(agent.attempts) and running(built) == 0)
        assert await reported(built, "kv_cache_usage_perc") == 0
        await until(lambda: is_at_rest(built.fabric, built.gateway))
        answer = await agent.ask(branch="again/a")
        assert answer.parse().choices[0].message.content and answer.headers["x-amf-run-id"] == "r"


async def test_a_call_that_goes_on_from_one_alternative_commits_it() -> None:
    """The hops of an alternative as parents, and nothing said of branches."""
    async with house(*two_workers()) as built, agent_before(built.gateway) as agent:
        await agent.launch("drafts/b", "drafts/c")
        await agent.launch("drafts/a", tokens=50)
        await until(lambda: agent.attempts["drafts/a"].is_done)
        assert running(built) == 2
        answer = await agent.ask(hop="merge", parents=["try drafts/a"])
        assert answer.parse().choices[0].message.content
        await until(lambda: lost(agent) == {"drafts/b", "drafts/c"})
        await until(lambda: is_at_rest(built.fabric, built.gateway) and running(built) == 0)
        groups = built.fabric.run_report("r")["groups"]
        assert {name: each["fate"] for name, each in groups["drafts"]["alternatives"].items()} == {
            "a": "committed",
            "b": "discarded",
            "c": "discarded",
        }


async def test_a_discarded_alternative_takes_what_is_inside_it_along() -> None:
    async with house(*two_workers()) as built, agent_before(built.gateway) as agent:
        await agent.launch("plan/a/code/x", "plan/a/code/y", "plan/b/code/x")
        await agent.commit(group="plan/a/code", discard="x")
        await until(lambda: lost(agent) == {"plan/a/code/x"} and running(built) == 2)
        await agent.commit(group="plan", discard="a")
        await until(lambda: lost(agent) == {"plan/a/code/x", "plan/a/code/y"} and running(built) == 1)
        with pytest.raises(openai.APIStatusError) as caught:
            await agent.ask(branch="plan/a/code/z")
        assert caught.value.code == "branch_cancelled"
        answer = await agent.ask(branch="plan/b/test/x", commit="plan/b/code/x", hop="goes on inside b")
        assert answer.parse().choices[0].message.content
        agent.tasks[2].cancel()
        await until(lambda: is_at_rest(built.fabric, built.gateway) and running(built) == 0)


async def test_a_worker_that_is_killed_between_launch_and_commit_leaves_nothing_behind() -> None:
    with processes(*[("emulate", "--port", "0", "--model", MODEL, "--time-scale", str(SCALE))] * 2) as workers:
        config = serve_config([each.url for each in workers], time_scale=SCALE)
        async with gateway_before(config) as (gateway, fabric), agent_before(gateway) as agent:
            names = [f"drafts/{name}" for name in "abcdef"]
            await agent.launch(*names)
            held = {name: _worker_of(fabric, name) for name in names}
            assert len(set(held.values())) == 2, "both workers have some, or the kill proves nothing"
            workers[0].kill()
            gone = {name for name, worker in held.items() if worker == "w0"}
            await until(lambda: all(agent.attempts[name].error for name in gone))
            assert {agent.attempts[name].error.code for name in gone} == {"upstream_failed"}  # type: ignore[union-attr]
            kept, *others = [name for name in names if name not in gone]
            answer = await agent.commit(group="drafts", commit=kept.rpartition("/")[2])
            assert answer["cancelled_calls"] == len(others)
            await until(lambda: all(agent.attempts[name].error for name in others))
            agent.tasks[names.index(kept)].cancel()
            await until(lambda: is_at_rest(fabric, gateway))
            await until(lambda: is_idle(workers[1].url))
            answer = await agent.ask(hop="next")
            assert answer.headers["x-amf-worker"] == "w1"


def _worker_of(fabric: Watched, branch: str) -> str:
    calls = [event.call_id for event in fabric.events(FirstToken)]
    states = {state.call.branch: state.worker for call in calls if (state := fabric.book.pipelines.call(call))}
    return states[branch]


async def test_a_gateway_that_is_killed_between_launch_and_commit_leaves_nothing_behind() -> None:
    """Engines stop what nobody listens to; the next gateway knows nothing of the branches, and takes the run up anew."""
    with processes(("emulate", "--port", "0", "--model", MODEL)) as (worker,):
        serve = ("serve", "--port", "0", "--worker", worker.url)
        with processes(serve) as (first,):
            async with AsyncOpenAI(base_url=f"{first.url}/v1", api_key="none", max_retries=0) as client:
                agent = Agent(client, first.url)
                await agent.launch("drafts/a", "drafts/b", "drafts/c")
                first.kill()
                await asyncio.gather(*agent.tasks, return_exceptions=True)
                await until(lambda: is_idle(worker.url))
        with processes(serve) as (second,):
            async with AsyncOpenAI(base_url=f"{second.url}/v1", api_key="none", max_retries=2) as client:
                agent = Agent(client, second.url)
                answer = await agent.ask(commit="drafts/a", hop="next")
                assert answer.parse().choices[0].message.content

"""Pipelines at work on three engine processes, one of which is killed in mid-stream, and comes back.

The run happens once with the kill and once without; each test looks at one thing that must hold afterwards. A call that had
sent its client nothing is saved on another worker; one that had is ended with a clear error; nothing hangs or is left behind;
the journal leads to the same decisions again.
"""

import asyncio
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest
from e2e_kit import (
    AMF,
    MODEL,
    Process,
    Watched,
    gateway_before,
    is_at_rest,
    processes,
    serve_config,
    until,
)
from openai import AsyncOpenAI

from amf.core.events import CallArrived, CallFinished, FirstToken, WorkerJoined, WorkerLost
from amf.gateway.service import Gateway

WORKERS, PIPELINES, HOPS = 3, 24, 4
SCALE = 10.0
CONTEXT = "A worker may fall silent at any moment; what it has not said can be asked of another. " * 30


@dataclass(frozen=True)
class Outcome:
    """What the client of one call saw."""

    run_id: str
    call_id: str
    streamed: bool
    worker: str
    text: str = ""
    error: openai.APIError | None = None


@dataclass
class Aftermath:
    killed: bool
    journal: Path
    fabric: Watched
    outcomes: list[Outcome] = field(default_factory=list)
    later: list[Outcome] = field(default_factory=list)  # of pipelines begun when the worker was back
    was_at_rest: bool = False
    status_when_dead: str = ""

    def unsaved(self) -> set[str]:
        """Calls that had begun to answer on the killed worker and did not come to their end there."""
        lost = set()
        for event in self.fabric.events(FirstToken):
            attempts = self.fabric.workers_of(event.call_id)
            if attempts[event.attempt - 1] == "w0" and not self.fabric.events(CallFinished, event.call_id):
                lost.add(event.call_id)
        return lost

    def moved(self) -> set[str]:
        """Calls that were given to the killed worker and then to another."""
        calls = {each.call_id for each in self.fabric.dispatches() if each.attempt > 1}
        return {call_id for call_id in calls if "w0" in self.fabric.workers_of(call_id)[:-1]}


async def hop(client: AsyncOpenAI, run_id: str, number: int, messages: list[dict[str, str]], final: bool) -> Outcome:
    streamed = (int(run_id.rsplit("-", 1)[1]) + number) % 2 == 0
    raw = await client.chat.completions.with_raw_response.create(
        model=MODEL,
        messages=messages,  # type: ignore[arg-type]
        max_tokens=600,
        stream=streamed,
        extra_body={"ignore_eos": True, "amf": {"run_id": run_id, "hop": f"hop-{number}", "final": final}},
    )
    seen: dict[str, Any] = {"run_id": run_id, "streamed": streamed}
    seen |= {"call_id": raw.headers["x-request-id"], "worker": raw.headers["x-amf-worker"]}
    if not streamed:
        return Outcome(**seen, text=raw.parse().choices[0].message.content)
    text = ""
    try:
        async for chunk in raw.parse():
            text += chunk.choices[0].delta.content or ""
    except openai.APIError as error:
        return Outcome(**seen, text=text, error=error)
    return Outcome(**seen, text=text)


async def pipeline(client: AsyncOpenAI, run_id: str, outcomes: list[Outcome]) -> None:
    """Hops one after the other, each with all that came before. A broken hop ends it."""
    messages = [{"role": "system", "content": "You are a worker's advocate."}]
    for number in range(HOPS):
        messages.append({"role": "user", "content": f"{run_id} {number}: {CONTEXT}"})
        outcome = await hop(client, run_id, number, messages, number == HOPS - 1)
        outcomes.append(outcome)
        if outcome.error is not None:
            return
        messages.append({"role": "assistant", "content": outcome.text})


def busy(fabric: Watched) -> bool:
    """Whether the first worker has both: streams under way, and calls of which the client has seen nothing."""
    running = {event.call.call_id: event.call for event in fabric.events(CallArrived)}
    for event in fabric.events(CallFinished):
        running.pop(event.call_id, None)
    there = [call for call in running.values() if fabric.workers_of(call.call_id)[-1:] == ["w0"]]
    begun = [call for call in there if fabric.has_begun(call.call_id)]
    return len(begun) >= 3 and len([call for call in there if not call.streams]) >= 2


async def run(workers: list[Process], journal: Path, *, kill: bool) -> Aftermath:
    config = serve_config([each.url for each in workers], time_scale=SCALE, journal=journal)
    async with (
        asyncio.timeout(60),
        gateway_before(config) as (gateway, fabric),
        AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=30.0) as client,
    ):
        after = Aftermath(kill, journal, fabric)
        async with asyncio.TaskGroup() as tasks:
            for number in range(PIPELINES):
                tasks.create_task(pipeline(client, f"run-{number}", after.outcomes))
            if kill:
                await until(lambda: busy(fabric))
                workers[0].kill()
        await until(lambda: is_at_rest(fabric, gateway))
        after.was_at_rest = True
        if kill:
            await come_back(gateway, after, client, workers[0].port)
        return after


async def come_back(gateway: Gateway, after: Aftermath, client: AsyncOpenAI, port: int) -> None:
    """The killed worker starts again on its port; some more pipelines follow."""
    await until(lambda: gateway.fleet.up() == WORKERS - 1)
    after.status_when_dead = gateway.fleet.describe("w0")["status"]
    with processes(emulate(port)):
        await until(lambda: gateway.fleet.up() == WORKERS)
        async with asyncio.TaskGroup() as tasks:
            for number in range(6):
                tasks.create_task(pipeline(client, f"later-{number}", after.later))
        await until(lambda: is_at_rest(after.fabric, gateway))


def emulate(port: int) -> list[str]:
    return ["emulate", "--port", str(port), "--model", MODEL, "--time-scale", str(SCALE)]


@pytest.fixture(scope="module", params=[True, False], ids=["killed", "unharmed"])
def after(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aftermath]:
    journal = tmp_path_factory.mktemp("e2e") / "journal.jsonl"
    with processes(*[emulate(0)] * WORKERS) as workers:
        yield asyncio.run(run(workers, journal, kill=request.param))


def test_every_call_is_answered_or_told_why_not(after: Aftermath) -> None:
    broken = {each.call_id for each in after.outcomes if each.error is not None}
    assert broken == after.unsaved()
    assert bool(broken) == after.killed, "the kill must hit streams under way, or it proves nothing"
    arrived = {event.call.call_id for event in after.fabric.events(CallArrived)}
    assert {each.call_id for each in after.outcomes + after.later} == arrived
    assert len(after.outcomes) >= PIPELINES * HOPS - len(broken) * (HOPS - 1)
    for each in after.outcomes:
        if each.error is None:
            assert len(each.text) == 600 * 4, "an answer is whole"


def test_a_broken_stream_says_that_it_broke(after: Aftermath) -> None:
    for each in after.outcomes:
        if each.error is not None:
            assert each.streamed and each.worker == "w0" and 0 < len(each.text) < 600 * 4
            assert each.error.code == "upstream_failed" and "broke off" in each.error.message


def test_what_had_not_begun_was_saved_elsewhere(after: Aftermath) -> None:
    moved = after.moved()
    assert bool(moved) == after.killed
    saved = {each.call_id: each for each in after.outcomes if each.error is None}
    assert moved <= set(saved) and all(saved[call_id].worker != "w0" for call_id in moved)
    finished = [event.call_id for event in after.fabric.events(CallFinished)]
    assert sorted(finished) == sorted(each.call_id for each in after.outcomes + after.later if each.error is None)


def test_nothing_is_left_behind(after: Aftermath) -> None:
    assert after.was_at_rest
    totals = after.fabric.totals()
    assert totals["live_calls"] == totals["cancelled"] == totals["refused"] == 0
    assert totals["failed"] == len(after.unsaved())
    assert (
        len([event for event in after.fabric.events(WorkerLost) if event.reason != "the gateway stops"]) == after.killed
    )


def test_the_worker_that_comes_back_is_used_again(after: Aftermath) -> None:
    if not after.killed:
        assert len(after.fabric.events(WorkerJoined)) == WORKERS
        return
    assert after.status_when_dead == "lost"
    assert len(after.fabric.events(WorkerJoined)) == WORKERS + 1
    assert len(after.later) == 6 * HOPS and all(each.error is None for each in after.later)
    assert "w0" in {each.worker for each in after.later}


def test_the_journal_replays_to_identical_decisions(after: Aftermath) -> None:
    done = subprocess.run([*AMF, "replay", str(after.journal)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(after.fabric.told)} events" in done.stdout and "0 differences" in done.stdout
    assert b"fall silent" not in after.journal.read_bytes(), "a journal holds no prompts"

"""An unmodified LangGraph program: it learns of the gateway by OPENAI_BASE_URL and of nothing else."""

import asyncio
import os
import subprocess
import sys

import aiohttp
from e2e_kit import MODEL, ROOT, House, house, workers_counters

from amf.core.events import CallArrived, CallFinished
from amf.core.types import Call
from amf.emulator import EmulatorConfig

EXAMPLE = ROOT / "examples" / "langgraph_fanout.py"
NOTES = " ".join(
    f"Note {number}: a prompt's first blocks may be found where they were computed." for number in range(500)
)
QUESTIONS = (f"What is a prefix cache? {NOTES}", "And when does it not help?")  # a long thread: worth its prefill
SCALE = 10.0
CALLS_PER_TURN = 4  # planner, two researchers, writer


async def run_example(built: House) -> list[Call]:
    """The calls that the program made, in order of arrival."""
    environment = {**os.environ, "OPENAI_BASE_URL": built.url, "OPENAI_API_KEY": "none", "OPENAI_MODEL": MODEL}
    environment.pop("OPENAI_API_BASE", None)
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(EXAMPLE), *QUESTIONS, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    async with asyncio.timeout(60):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    assert all(f"> {question}\n" in output.decode() for question in QUESTIONS)
    return [event.call for event in built.fabric.events(CallArrived)]


async def test_three_nodes_and_a_fan_out() -> None:
    config = EmulatorConfig(model=MODEL, time_scale=SCALE)
    async with house(config, config) as built:
        calls = await run_example(built)
        totals = built.fabric.totals()
        assert len(calls) == len(built.fabric.dispatches()) == CALLS_PER_TURN * len(QUESTIONS)
        assert built.requests() == {200: len(calls)} and totals["failed"] == totals["retried"] == 0
        assert {call.identity for call in calls} == {"derived"}

        url = f"{built.gateway.url}/amf/v1/runs"
        async with aiohttp.ClientSession() as http, http.get(url, params={"limit": "100"}) as response:
            runs = {run["run_id"]: run for run in (await response.json())["runs"]}
        assert set(runs) == {call.run_id for call in calls}
        assert sum(run["finished"] for run in runs.values()) == len(calls)

        truth = await workers_counters(built.emulators)
        assert (totals["prompt_tokens"], totals["cached_tokens"]) == (truth["prompt"], truth["cached"])


async def test_the_second_invocation_of_a_thread_finds_the_first_ones_prefix_warm() -> None:
    config = EmulatorConfig(model=MODEL, time_scale=SCALE)
    async with house(config, config) as built:
        calls = await run_example(built)
        first, second = calls[0], calls[CALLS_PER_TURN]  # the planner's: it reads the whole thread each time
        assert second.run_id == first.run_id
        assert built.fabric.workers_of(second.call_id) == built.fabric.workers_of(first.call_id)
        placed = next(each for each in built.fabric.dispatches() if each.call_id == second.call_id)
        assert placed.hit_tokens > 0
        (before,), (after,) = (built.fabric.events(CallFinished, call.call_id) for call in (first, second))
        whole_blocks = before.prompt_tokens // config.block_tokens * config.block_tokens
        assert after.cached_tokens == whole_blocks > 0, "all of the first prompt was found"


async def test_the_two_researchers_run_side_by_side() -> None:
    """Both branches of the fan-out are in flight at once, so the fabric sees siblings and not a chain."""
    async with house(EmulatorConfig(model=MODEL, time_scale=SCALE)) as built:
        one, other = (await run_example(built))[1:3]
        told = [event for event, _ in built.fabric.told]
        came = next(i for i, event in enumerate(told) if isinstance(event, CallArrived) and event.call is other)
        (done,) = built.fabric.events(CallFinished, one.call_id)
        assert came < told.index(done)

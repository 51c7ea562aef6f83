"""Order, refusal and expiry by deadlines as the `openai` client sees them, before an emulated worker that is soon full: it has
memory for one of these calls at a time."""

import asyncio
import math
from typing import Any

import openai
import pytest
from e2e_kit import MODEL, House, house, is_at_rest, until
from openai import AsyncOpenAI

from amf.core.config import FabricConfig
from amf.core.decisions import Refuse
from amf.core.events import CallArrived, FirstToken
from amf.emulator import EmulatorConfig

SCALE = 20.0
SMALL = EmulatorConfig(model=MODEL, time_scale=SCALE, kv_tokens=8_192)
LONG_PROMPT = "slack " * 3_000  # about 4,500 tokens
ANSWER_TOKENS = 4_500  # and so no second one beside it; about 25 s of an H200's time
GRAPH = {"name": "report", "hops": {"draft": {"model": MODEL}, "polish": {"model": MODEL, "after": ["draft"]}}}


def client_of(built: House) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=built.url, api_key="none", max_retries=0)


async def ask(client: AsyncOpenAI, run: str, words: str = "hello", *, tokens: int = 5, **fields: Any) -> Any:
    headers = {"x-amf-run-id": run, **fields.pop("headers", {})}
    return await client.chat.completions.with_raw_response.create(
        model=MODEL,
        messages=[{"role": "user", "content": words}],
        max_tokens=tokens,
        extra_headers=headers,
        extra_body={"ignore_eos": True},
        **fields,
    )


def ms(answer: Any, name: str) -> float:
    return float(answer.headers[f"x-amf-{name}-ms"])


# --- Order ----------------------------------------------------------------------------------------------------------------


async def test_least_slack_goes_first_then_throughput_then_background() -> None:
    """They come in the reverse order, while one call has the only worker's memory; when its client leaves, they go.
    Both deadlines are within `lapse_s` (60 s of ours at this scale), which is how long throughput yields."""
    kinds = {
        "background": {"x-amf-slo-class": "background"},
        "throughput": {"x-amf-slo-class": "throughput"},
        "patient": {"x-amf-deadline-ms": "50000"},
        "urgent": {"x-amf-deadline-ms": "30000"},
    }
    async with house(SMALL, policy="fabric") as built, client_of(built) as client:
        busy = (await ask(client, "busy", LONG_PROMPT, tokens=3_000, stream=True)).parse()
        await until(lambda: bool(built.fabric.events(FirstToken)))
        waiting = {}
        for number, (run, headers) in enumerate(kinds.items(), start=2):
            waiting[run] = asyncio.create_task(ask(client, run, f"{run} {LONG_PROMPT}", headers=headers))
            await until(lambda seen=number: len(built.fabric.events(CallArrived)) == seen)
        assert len(built.fabric.dispatches()) == 1, "the others have no room"
        await busy.close()
        answers = {run: await task for run, task in waiting.items()}
        runs = {event.call.call_id: event.call.run_id for event in built.fabric.events(CallArrived)}
        order = [runs[each.call_id] for each in built.fabric.dispatches()]
    assert order == ["busy", "urgent", "patient", "throughput", "background"]
    for run, limit_ms in (("urgent", 30_000), ("patient", 50_000)):
        answer = answers[run]
        assert 0 < ms(answer, "slack") <= ms(answer, "budget") < limit_ms
        assert 0 < ms(answer, "remaining") < ms(answer, "budget")
    assert ms(answers["urgent"], "slack") < ms(answers["patient"], "slack")
    for run in ("throughput", "background"):
        assert answers[run].headers["x-amf-slo-class"] == run
        assert not {"x-amf-budget-ms", "x-amf-slack-ms", "x-amf-remaining-ms"} & set(answers[run].headers)


# --- Refusal --------------------------------------------------------------------------------------------------------------


async def draft(client: AsyncOpenAI, run: str, budget_ms: float, **headers: str) -> Any:
    deadline = {"x-amf-pipeline": "report", "x-amf-hop": "draft", "x-amf-deadline-ms": str(budget_ms)}
    return await ask(client, run, tokens=ANSWER_TOKENS, headers={**deadline, **headers})


async def refused(client: AsyncOpenAI, run: str, budget_ms: float) -> openai.RateLimitError:
    with pytest.raises(openai.RateLimitError) as caught:
        await draft(client, run, budget_ms)
    return caught.value


async def test_what_cannot_be_in_time_is_refused_at_its_first_call_and_leaves_nothing() -> None:
    """Three reports have shown what one takes. Of four at once, due in 80 s of the fabric's clock, not all can be in time."""
    async with (
        house(SMALL, policy="fabric", fabric=FabricConfig(demand_evidence=3)) as built,
        client_of(built) as client,
    ):
        assert (await client.post(f"{built.gateway.url}/amf/v1/graphs", body=GRAPH, cast_to=object)) is not None
        for number in range(3):
            await draft(client, f"taught{number}", 4_000, **{"x-amf-final": "true"})
        burst = [asyncio.create_task(draft(client, f"burst{number}", 4_000)) for number in range(4)]
        done = await asyncio.gather(*burst, return_exceptions=True)
        errors = {f"burst{n}": each for n, each in enumerate(done) if isinstance(each, openai.RateLimitError)}
        admitted = [f"burst{n}" for n, each in enumerate(done) if not isinstance(each, BaseException)]
        assert len(errors) + len(admitted) == 4 and 1 <= len(admitted) <= 3
        hints_s = [
            each.retry_after_s for _, decided in built.fabric.told for each in decided if isinstance(each, Refuse)
        ]
        assert len(hints_s) == len(errors) and all(hint_s is not None and hint_s >= 10.0 for hint_s in hints_s)
        for error in errors.values():
            headers = error.response.headers
            assert (error.code, headers["x-should-retry"]) == ("pipeline_admission_refused", "true")
            assert int(headers["retry-after-ms"]) >= 10_000 / SCALE, "ten seconds of the fabric's clock"
        told_ms = sorted(int(error.response.headers["retry-after-ms"]) for error in errors.values())
        assert told_ms == sorted(math.ceil(1000 * hint_s / SCALE) for hint_s in hints_s)
        hopeless = await refused(client, "hopeless", 100)  # 2 s for about 25
        assert (hopeless.code, hopeless.response.headers["x-should-retry"]) == ("deadline_infeasible", "false")
        assert "retry-after-ms" not in hopeless.response.headers
        for run in admitted:  # whatever the demand is by now
            hop = {"x-amf-hop": "polish", "x-amf-parents": "draft", "x-amf-final": "true"}
            assert (await ask(client, run, "polish it", headers=hop)).status_code == 200
        listed: Any = await client.get(f"{built.gateway.url}/amf/v1/runs", cast_to=object)
        known = {run["run_id"] for run in listed["runs"]}
        assert known == {"taught0", "taught1", "taught2", *admitted}
        assert built.count("amf_refused_calls_total", code="deadline_infeasible") == 1
        assert is_at_rest(built.fabric, built.gateway)


# --- Given up -------------------------------------------------------------------------------------------------------------


async def test_a_run_past_its_deadline_is_given_up_and_its_worker_free_again() -> None:
    async with house(SMALL, policy="fabric-hard") as built, client_of(built) as client:
        late = asyncio.create_task(ask(client, "late", tokens=8_000, headers={"x-amf-deadline-ms": "400"}))
        with pytest.raises(openai.APIStatusError) as caught:
            await late
        assert (caught.value.status_code, caught.value.code) == (504, "deadline_exceeded")
        assert caught.value.response.headers["x-should-retry"] == "false"
        await until(lambda: is_at_rest(built.fabric, built.gateway) and built.emulators[0].live.pending == 0)
        next_one = await ask(client, "next", LONG_PROMPT, headers={"x-amf-deadline-ms": "60000"})
        assert next_one.status_code == 200 and built.fabric.run_report("late")["status"] == "expired"
        with pytest.raises(openai.APIStatusError) as again:
            await ask(client, "late", "and now?")
        assert again.value.code == "deadline_exceeded"

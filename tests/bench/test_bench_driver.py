"""The driver and its client against a scripted target: loops, identity, refusals, failures, time-outs."""

import asyncio
from dataclasses import replace

import pytest
from bench_target import answer, broken_stream, chain, cut, refuse, scripted, stall

from amf.bench.client import Client, Target
from amf.bench.driver import DriveOptions, Driver, PipelineRun
from amf.core.types import CallKind
from amf.sim.plan import PipelinePlan, Workload

FAST = DriveOptions(time_scale=1.0, nonce="x")


async def drive(url: str, *plans: PipelinePlan, options: DriveOptions = FAST, **target: object) -> list[PipelineRun]:
    concurrency = None if plans[0].arrival_s is not None else 2
    workload = Workload(name="w", pipelines=plans, concurrency=concurrency)
    async with Client(Target(url=url, **target)) as client:  # type: ignore[arg-type]
        return await Driver(workload, client, options).run()


async def test_a_session_is_sent_in_order_and_measured() -> None:
    async with scripted([answer(delay_s=0.02)]) as target:
        (run,) = await drive(target.url, chain("p", 3, gap_s=0.05))
    assert (run.fate, run.code, len(run.calls)) == ("completed", None, 3)
    for before, after in zip(run.calls, run.calls[1:], strict=False):
        assert after.ready_s == before.end_s
        assert after.due_s == pytest.approx(before.end_s + 0.05)
    for call in run.calls:
        assert call.due_s <= call.sent_s <= call.first_s - 0.02 <= call.end_s
        assert call.answer.usage.prompt_tokens == 100 and call.answer.usage.cached_tokens == 40
        assert call.answer.worker == "w1"
    bodies = [body for _, _, body in target.requests]
    assert [len(body["messages"]) for body in bodies] == [2, 4, 6]
    assert bodies[2]["messages"][:3] == bodies[1]["messages"][:3]
    assert all(body["ignore_eos"] and body["max_tokens"] == 3 and body["stream"] for body in bodies)


async def test_time_scale_divides_gaps_and_deadlines() -> None:
    options = replace(FAST, time_scale=100.0)
    async with scripted([answer()]) as target:
        (run,) = await drive(target.url, chain("p", 2, gap_s=5.0, declared=True, slo_s=60.0), options=options)
    assert run.calls[1].due_s - run.calls[1].ready_s == pytest.approx(0.05)
    first, second = (headers for _, headers, _ in target.requests)
    assert 500 < int(first["x-amf-deadline-ms"]) <= 600
    assert "x-amf-deadline-ms" not in second


async def test_declared_pipelines_name_graph_run_hop_parents_and_end() -> None:
    async with scripted([answer()]) as target:
        await drive(target.url, chain("p", 2, declared=True))
    first, second = (headers for _, headers, _ in target.requests)
    assert (first["x-amf-pipeline"], first["x-amf-run-id"], first["x-amf-hop"]) == ("g", "p-x", "h0")
    assert "x-amf-parents" not in first and "x-amf-final" not in first
    assert (second["x-amf-parents"], second["x-amf-final"]) == ("h0", "true")


@pytest.mark.parametrize(("identity", "session"), [("auto", "p-x"), ("session", "p-x"), ("none", None)])
async def test_undeclared_pipelines_send_at_most_a_session(identity: str, session: str | None) -> None:
    async with scripted([answer()]) as target:
        await drive(target.url, chain("p", 1), options=replace(FAST, identity=identity))  # type: ignore[arg-type]
    ((_, headers, _),) = target.requests
    assert headers.get("x-session-id") == session
    assert not [name for name in headers if name.lower().startswith("x-amf-")]


async def test_closed_loop_keeps_its_number_of_pipelines_live() -> None:
    async with scripted([answer(delay_s=0.01)]) as target:
        runs = await drive(target.url, *(chain(f"p{index}", 2) for index in range(7)))
    assert [run.fate for run in runs] == ["completed"] * 7
    moments = sorted([(run.start_s, 1) for run in runs] + [(run.end_s, -1) for run in runs])
    live = peak = 0
    for _, change in moments:
        live += change
        peak = max(peak, live)
    assert peak == 2


async def test_open_loop_starts_at_arrivals_however_slow_the_target_is() -> None:
    plans = [chain(f"p{index}", 1, arrival_s=index * 2.0) for index in range(4)]
    async with scripted([answer(delay_s=0.3)]) as target:
        runs = await drive(target.url, *plans, options=replace(FAST, time_scale=100.0))
    assert [run.start_s for run in runs] == pytest.approx([0.0, 0.02, 0.04, 0.06])
    assert max(run.calls[0].sent_s for run in runs) < min(run.calls[0].end_s for run in runs)


async def test_a_hold_is_honoured_and_then_served() -> None:
    async with scripted([refuse(429, "busy", retry_after_ms="30"), answer()]) as target:
        (run,) = await drive(target.url, chain("p", 1))
    assert run.fate == "completed" and run.calls[0].answer.holds == 1
    assert run.calls[0].end_s - run.calls[0].sent_s >= 0.03


@pytest.mark.parametrize(
    ("step", "holds"),
    [
        (refuse(429, "pipeline_admission_refused", retry_after_ms="1"), 2),
        (refuse(429, "deadline_infeasible", retry_after_ms="1", x_should_retry="false"), 0),
        (refuse(429, "rate_limited"), 0),
    ],
)
async def test_a_first_hop_refusal_is_counted_as_one_after_bounded_holds(step: object, holds: int) -> None:
    async with scripted([step]) as target:  # type: ignore[list-item]
        (run,) = await drive(target.url, chain("p", 2), max_holds=2)
    assert run.fate == "refused" and run.calls[0].answer.holds == holds
    assert run.code is not None and run.code.startswith("429 ")


@pytest.mark.parametrize(
    ("steps", "code"),
    [
        ([refuse(500, "boom")], "500 boom"),
        ([refuse(410, "branch_cancelled")], "410 branch_cancelled"),
        ([refuse(503, "no_worker", retry_after_ms="1")], "503 no_worker"),
        ([cut()], "stream_truncated"),
        ([broken_stream("worker_lost")], "worker_lost"),
        ([stall()], "timeout"),
        ([answer(), refuse(429, "late")], "429 late"),
    ],
)
async def test_whatever_goes_wrong_is_recorded_with_its_code(steps: list, code: str) -> None:  # type: ignore[type-arg]
    async with scripted(steps) as target:
        (run,) = await drive(target.url, chain("p", 3), timeout_s=0.4, max_holds=1)
    assert (run.fate, run.code) == ("failed", code)
    assert run.end_s is not None and len(run.calls) == len(steps)


async def test_an_unreachable_target_fails_every_pipeline_without_raising() -> None:
    runs = await drive("http://127.0.0.1:9", chain("p", 2), chain("q", 2))
    assert [(run.fate, run.code) for run in runs] == [("failed", "unreachable")] * 2


async def test_time_up_starts_nothing_more_and_keeps_what_is_unfinished() -> None:
    async with scripted([answer(), stall()]) as target:
        plans = [chain("p", 1), *(chain(f"q{index}", 2) for index in range(5))]
        runs = await drive(target.url, *plans, options=replace(FAST, seconds=0.3))
    assert [run.fate for run in runs] == ["completed", "unfinished", "unfinished"]
    assert all(run.end_s is not None and run.end_s >= 0.3 for run in runs[1:])


async def test_draining_lets_live_pipelines_finish() -> None:
    options = replace(FAST, seconds=0.1, drain_s=5.0)
    async with scripted([answer(delay_s=0.3)]) as target:
        runs = await drive(target.url, *(chain(f"p{index}", 1) for index in range(6)), options=options)
    assert [run.fate for run in runs] == ["completed", "completed"]


async def test_stopping_returns_at_once_with_a_partial_result() -> None:
    async with scripted([stall()]) as target, Client(Target(url=target.url)) as client:
        driver = Driver(Workload(name="w", pipelines=(chain("p", 1),), concurrency=1), client, FAST)
        running = asyncio.create_task(driver.run())
        while not target.requests:
            await asyncio.sleep(0.005)
        driver.stop()
        (run,) = await asyncio.wait_for(running, 2)
    assert run.fate == "unfinished" and run.calls == []


async def test_embeddings_and_reranking_use_their_own_routes() -> None:
    plan = chain("p", 2)
    embed, rerank = (
        replace(call, kind=kind, parents=())
        for call, kind in zip(plan.calls, (CallKind.EMBED, CallKind.RERANK), strict=True)
    )
    async with scripted([refuse(200, "ignored")]) as target:
        await drive(target.url, replace(plan, calls=(embed, rerank)))
    sent = {path: body for path, _, body in target.requests}
    assert len(sent["/v1/embeddings"]["input"]) == embed.prompt.total_tokens * 4
    text = sent["/v1/rerank"]["query"] + "".join(sent["/v1/rerank"]["documents"])
    assert len(text) == rerank.prompt.total_tokens * 4


async def test_completions_send_one_prompt_and_models_are_renamed() -> None:
    async with scripted([answer()]) as target:
        (run,) = await drive(target.url + "/v1/", chain("p", 1), api="completions", model_map={"m": "their-m"})
    ((path, _, body),) = target.requests
    assert (path, body["model"], run.fate) == ("/v1/completions", "their-m", "completed")
    assert len(body["prompt"]) == run.plan.calls[0].prompt.total_tokens * 4


async def test_a_fan_in_waits_for_all_parents_and_only_the_last_call_is_final() -> None:
    plan = chain("p", 4, declared=True)
    parents: tuple[tuple[int, ...], ...] = ((), (0,), (0,), (1, 2))
    calls = tuple(replace(call, parents=up) for call, up in zip(plan.calls, parents, strict=True))
    async with scripted([answer(delay_s=0.02)]) as target:
        (run,) = await drive(target.url, replace(plan, calls=calls))
    by_hop = {call.plan.hop: call for call in run.calls}
    assert by_hop["h3"].sent_s >= max(by_hop["h1"].end_s, by_hop["h2"].end_s)
    finals = [headers["x-amf-hop"] for _, headers, _ in target.requests if "x-amf-final" in headers]
    joined = [headers["x-amf-parents"] for _, headers, _ in target.requests if headers["x-amf-hop"] == "h3"]
    assert (finals, joined) == (["h3"], ["h1|h2"])

"""The whole bench against an emulated worker: what answers say is what the worker counted, sharing is what was planned."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from bench_target import answer, chain, scripted
from typer import Typer
from typer.testing import CliRunner

from amf.bench.client import Client, Target
from amf.bench.driver import DriveOptions
from amf.bench.runner import BenchError, BenchJob, BenchResult, check_target, run_bench
from amf.commands.bench import bench as bench_command
from amf.emulator import EmulatorConfig, running
from amf.sim.plan import PipelinePlan, Workload
from amf.sim.report import write_json
from amf.sim.scenario import PoolSpec, WorkloadSpec
from amf.sim.workload import build, ideal_cached_tokens

MODEL = "llama-3.1-8b"
FLEET = (PoolSpec(model=MODEL),)
SCALE = 200.0


def job(url: str, workload: Workload, **changes: object) -> BenchJob:
    made = BenchJob(
        workload=workload,
        fleet=FLEET,
        target=Target(url=url),
        label="emulator",
        options=DriveOptions(time_scale=SCALE),
        workers=(url,),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def sessions(count: int, **spec: object) -> Workload:
    """Short sessions of the generator, a tenth of their contexts."""
    asked = WorkloadSpec(
        kind="coding-sessions", pipelines=count, slo_stretch=3.0, scale_tokens=0.1, think_cap_s=5.0, seed=3, **spec
    )  # type: ignore[arg-type]
    workload = build(asked, FLEET)
    return replace(workload, pipelines=tuple(replace(plan, calls=plan.calls[:5]) for plan in workload.pipelines))


async def bench(config: EmulatorConfig, workload: Workload, **changes: object) -> BenchResult:
    async with running(config) as emulator:
        return await run_bench(job(emulator.url, workload, **changes))


@pytest.mark.parametrize("load", [{"concurrency": 3}, {"rate_per_s": 0.5}])
async def test_totals_agree_with_the_worker_to_the_token(load: dict[str, float]) -> None:
    workload = sessions(8, **load)
    result = await bench(EmulatorConfig(model=MODEL, time_scale=SCALE, block_tokens=64), workload)
    report = result.report
    assert (report["completed"], report["errors"], report["unfinished"]) == (8, {}, 0)
    assert result.agreement is not None and result.agreement.exact, result.agreement.lines()
    planned = sum(call.output_tokens for plan in workload.pipelines for call in plan.calls)
    assert result.agreement.measured.output_tokens == planned
    assert report["goodput_per_s"] > 0 and report["cost_usd"] > 0 and report["ttft_s"]["p50"] > 0


async def test_an_ample_cache_finds_what_the_plan_shares_but_for_the_template() -> None:
    """As one text exactly; as messages the template's marks shift the blocks, which costs a call a block or two."""
    workload = sessions(2, concurrency=1)
    for api, lost_blocks in (("chat", 2), ("completions", 0)):
        async with running(EmulatorConfig(model=MODEL, time_scale=SCALE, block_tokens=64)) as emulator:
            result = await run_bench(job(emulator.url, workload, target=Target(url=emulator.url, api=api)))  # type: ignore[arg-type]
        calls = sum(len(plan.calls) for plan in workload.pipelines)
        prompt = sum(call.prompt.total_tokens for plan in workload.pipelines for call in plan.calls)
        lost = ideal_cached_tokens(workload) - result.report["cached_tokens"]
        assert 0 <= lost <= lost_blocks * 64 * calls
        assert (result.report["prompt_tokens"] == prompt) == (api == "completions")


async def test_embeddings_and_reranks_of_a_graph_are_counted_too() -> None:
    graph = build(
        WorkloadSpec(kind="graph", graph="coding-7hop", pipelines=2, concurrency=2, slo_stretch=3.0, scale_tokens=0.05),
        (PoolSpec(model="llama-3.3-70b"), PoolSpec(model="qwen3-32b"), *_encoders()),
    )
    everything = {call.pool: "one" for plan in graph.pipelines for call in plan.calls}
    async with running(EmulatorConfig(model=MODEL, served_name="one", time_scale=SCALE)) as emulator:
        target = Target(url=emulator.url, model_map=everything)
        result = await run_bench(job(emulator.url, graph, target=target, fleet=_graph_fleet()))
    assert result.report["completed"] == 2
    assert result.agreement is not None and result.agreement.exact, result.agreement.lines()


def _encoders() -> tuple[PoolSpec, ...]:
    return tuple(
        PoolSpec(model=name, gpu="l40s", weights="bf16", kv="bf16") for name in ("bge-m3", "bge-reranker-v2-m3")
    )


def _graph_fleet() -> tuple[PoolSpec, ...]:
    return (PoolSpec(model="llama-3.3-70b"), PoolSpec(model="qwen3-32b"), *_encoders())


async def test_a_full_queue_is_refusal_or_failure_never_an_exception() -> None:
    config = EmulatorConfig(model=MODEL, time_scale=SCALE, max_running=1, max_waiting=1)
    result = await bench(config, sessions(12, concurrency=12))
    report = result.report
    assert report["completed"] + report["refused"] + report["failed"] == 12
    assert report["failed"] > 0 and all(code.startswith("503 ") for code in report["errors"])


async def test_the_report_can_be_written_as_json(tmp_path: Path) -> None:
    result = await bench(EmulatorConfig(model=MODEL, time_scale=SCALE), sessions(1, concurrency=1))
    write_json(tmp_path / "r.json", [result.report])
    (row,) = json.loads((tmp_path / "r.json").read_text())
    assert row["policy"] == "emulator" and row["driver_lag_s"]["max"] >= 0


async def test_a_model_the_target_lacks_is_an_error_before_anything_is_sent() -> None:
    plan: PipelinePlan = chain("p", 1)
    lacking = replace(plan, calls=tuple(replace(call, pool="other") for call in plan.calls))
    async with scripted([answer()]) as target, Client(Target(url=target.url)) as client:
        await check_target(client, Workload(name="w", pipelines=(plan,)))
        with pytest.raises(BenchError, match=r"does not serve other; it serves m\. Rename with --model-map other=m"):
            await check_target(client, Workload(name="w", pipelines=(lacking,)))
    assert target.requests == []


SCENARIO = f"""
[workload]
kind = "coding-sessions"
pipelines = 1
[[pool]]
model = "{MODEL}"
"""


@pytest.mark.parametrize(
    ("text", "arguments", "said"),
    [
        (SCENARIO, ["--target", "http://127.0.0.1:9"], "127.0.0.1:9 does not answer"),
        (SCENARIO, ["--target", "127.0.0.1:9"], "write it as http://HOST:PORT"),
        (SCENARIO, ["--target", "http://127.0.0.1:9", "--model-map", "x"], "not OURS=THEIRS"),
        (SCENARIO.replace("kind", "knid"), ["--target", "http://127.0.0.1:9"], "did you mean 'kind'"),
        ("[workload]\nkind = 3", ["--target", "http://127.0.0.1:9"], "is not a text"),
    ],
)
def test_the_command_says_what_is_wrong_and_exits_with_2(
    tmp_path: Path, text: str, arguments: list[str], said: str
) -> None:
    app = Typer()
    app.command()(bench_command)
    path = tmp_path / "s.toml"
    path.write_text(text)
    result = CliRunner().invoke(app, [str(path), *arguments])
    assert result.exit_code == 2 and said in result.output, result.output

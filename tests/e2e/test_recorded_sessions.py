"""Recorded coding-agent sessions through `amf bench`, the gateway and two workers: nothing fails, and what the report says of
tokens is what the workers counted.

The recording lies outside the repository (its own licence): in $AMF_TRACES, or in ../shared/traces. A small one made by hand
keeps the same path under test where there is none.
"""

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from e2e_kit import AMF, MODEL, Process, counters, house, processes, workers_counters

from amf.bench.client import Target
from amf.bench.driver import DriveOptions
from amf.bench.runner import BenchJob, run_bench
from amf.emulator import EmulatorConfig
from amf.sim.plan import PipelinePlan, Workload
from amf.sim.scenario import PoolSpec, WorkloadSpec
from amf.sim.workload import build

TRACES = Path(os.environ.get("AMF_TRACES") or Path(__file__).parents[3] / "shared" / "traces")
RECORDING = TRACES / "claude_code_sessions.jsonl.gz"
SCALE = 400.0
POOL = PoolSpec(model=MODEL, workers=2, kv_tokens=400_000)


def tokens_of(plan: PipelinePlan) -> int:
    return sum(call.prompt.total_tokens for call in plan.calls)


def few_sessions() -> Workload:
    """The six smallest recorded sessions and the smallest with sub-agents: some five million prompt tokens."""
    spec = WorkloadSpec(
        kind="claude-code", path=RECORDING, pipelines=120, concurrency=4, think_cap_s=10.0, slo_stretch=3.0
    )
    workload = build(spec, [POOL])
    by_size = sorted(workload.pipelines, key=tokens_of)
    family = next(plan for plan in by_size if len({call.lane for call in plan.calls}) > 1)
    return Workload(name="recorded", pipelines=(family, *by_size[:6]), concurrency=4, seed=workload.seed)


@pytest.mark.skipif(not RECORDING.exists(), reason=f"no recording at {RECORDING}: set AMF_TRACES to where it lies")
async def test_recorded_sessions_through_the_gateway() -> None:
    workload = few_sessions()
    calls = [call for plan in workload.pipelines for call in plan.calls]
    emulator = EmulatorConfig(model=MODEL, time_scale=SCALE, kv_tokens=POOL.kv_tokens)
    async with house(emulator, emulator) as built:
        job = BenchJob(
            workload=workload,
            fleet=[POOL],
            target=Target(url=built.gateway.url, timeout_s=60.0),
            label="fabric",
            options=DriveOptions(time_scale=SCALE),
            workers=[each.url for each in built.emulators],
        )
        async with asyncio.timeout(60):
            result = await run_bench(job)
        truth = await workers_counters(built.emulators)
        report = result.report
        assert (report["completed"], report["failed"], report["refused"]) == (len(workload.pipelines), 0, 0)
        assert built.requests() == {200: len(calls)}
        assert (report["prompt_tokens"], report["cached_tokens"]) == (truth["prompt"], truth["cached"])
        assert result.agreement is not None and result.agreement.exact, result.agreement.lines()
        assert truth["output"] == sum(call.output_tokens for call in calls)
        assert 0.5 < report["hit_ratio"] <= report["ideal_hit_ratio"] <= 1.0
        assert built.fabric.totals()["opened"] == len(workload.pipelines)
        assert {each.worker for each in built.fabric.dispatches()} == {"w0", "w1"}


def call(name: str, **fields: Any) -> dict[str, Any]:
    common = {"p": [], "t": 0.0, "dur": 2.0, "gap": 1.0, "kind": "tool", "model": "m", "agent": "main", "out": 60}
    return {"id": name, **common, **fields}


def small_recording(path: Path, sessions: int = 5) -> int:
    """Sessions of six calls: two turns, a sub-agent beside the third, a joining call, a compaction. Returns their calls."""
    for number in range(sessions):
        size = 30 + 7 * number  # blocks of the first prompt
        calls = [
            call("a", gap=None, new=[[0, size]], **{"in": 64 * size + 5}),
            call("b", p=["a"], ref="a", keep=size, new=[[1000, 6]], **{"in": 64 * (size + 6) + 11}),
            call("s", p=["b"], agent="sub", gap=None, new=[[3000, 20]], **{"in": 64 * 20 + 1}),
            call("c", p=["b"], ref="b", keep=size + 6, new=[[1100, 3]], **{"in": 64 * (size + 9)}),
            call("d", p=["c", "s"], ref="c", keep=size + 9, new=[[1200, 4]], **{"in": 64 * (size + 13)}),
            call(
                "e",
                p=["d"],
                kind="think",
                gap=500.0,
                ref="a",
                keep=size // 2,
                new=[[2000, 8]],
                **{"in": 64 * (size // 2 + 8)},
            ),
        ]
        record = {"session": f"s{number}", "block": 64, "tool_tokens": 0, "system_tokens": 0, "calls": calls}
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")
    return 6 * sessions


def bench(folder: Path, gateway: Process, workers: list[Process]) -> tuple[dict[str, Any], str]:
    """`amf bench` as a user runs it. Returns its report and what it said."""
    scenario = folder / "small.toml"
    scenario.write_text(
        '[workload]\nkind = "claude-code"\npath = "small.jsonl"\npipelines = 5\nconcurrency = 3\nthink_cap_s = 20\n'
        f'[[pool]]\nmodel = "{MODEL}"\nworkers = 2\n'
    )
    urls = ",".join(each.url for each in workers)
    options = ["--target", gateway.url, "--workers", urls, "--time-scale", str(SCALE), "--json", str(folder / "r.json")]
    done = subprocess.run([*AMF, "bench", str(scenario), *options], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    (report,) = json.loads((folder / "r.json").read_text())
    return report, done.stdout


def test_a_small_recording_through_the_commands(tmp_path: Path) -> None:
    """Every part a process of its own: two `amf emulate`, `amf serve`, `amf bench`, and `amf replay` of the journal."""
    calls = small_recording(tmp_path / "small.jsonl")
    journal = tmp_path / "journal.jsonl"
    emulate = ["emulate", "--port", "0", "--model", MODEL, "--time-scale", str(SCALE)]
    with processes(emulate, emulate) as workers:
        named = [option for each in workers for option in ("--worker", each.url)]
        serve = ["serve", "--port", "0", "--time-scale", str(SCALE), "--journal", str(journal), *named]
        with processes(serve) as (gateway,):
            report, said = bench(tmp_path, gateway, workers)
            gateway.popen.terminate()
            assert gateway.popen.wait(timeout=10) == 0
        truth = counters(*(each.url for each in workers))
    assert (report["completed"], report["failed"], report["refused"], report["errors"]) == (5, 0, 0, {})
    assert (report["prompt_tokens"], report["cached_tokens"]) == (truth["prompt"], truth["cached"])
    assert truth["output"] == 60 * calls and truth["cached"] > 0.3 * truth["prompt"]
    assert "agree to the token" in said
    replayed = subprocess.run([*AMF, "replay", str(journal)], capture_output=True, text=True, timeout=60)
    assert replayed.returncode == 0 and "0 differences" in replayed.stdout, replayed.stdout

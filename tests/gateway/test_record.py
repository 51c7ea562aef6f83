"""Traffic is recorded without its text, whatever becomes of the process, and played again under other policies."""

import asyncio
import gzip
import json
import sys
import threading
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from gateway_kit import FAST, Answer, Client, FakeEngine, chat_messages, fake_engine, gateway_of, until

from amf.config import PoolConfig, RecordConfig, ServeConfig, ServerConfig, WorkerConfig
from amf.core.types import Call, Prefix, SloClass
from amf.emulator import EmulatorConfig, running
from amf.gateway.record import Ended, Recorder, free_name
from amf.gateway.service import running_gateway
from amf.sim.plan import Workload
from amf.sim.scenario import PoolSpec, WorkloadSpec
from amf.sim.workload import build, ideal_cached_by_call

SCALE = 50.0
LONG = "The quick brown fox jumps over the lazy dog. " * 120
MODEL = "llama-3.1-8b"
POOL = (PoolSpec(model=MODEL, workers=2, kv_tokens=20_000),)


def records(path: Path) -> list[dict[str, Any]]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in data.splitlines()]


def replayed(path: Path, **changes: Any) -> Workload:
    spec = {"kind": "recorded", "path": path, "pipelines": 100, "arrival": "trace"} | changes
    return build(WorkloadSpec(**spec), POOL)


async def hop(client: Client, run: str, name: str, parents: str, *contents: str) -> Answer:
    headers = {"x-amf-run-id": run, "x-amf-pipeline": "fan", "x-amf-hop": name, "x-amf-deadline-ms": "60000"}
    if parents:
        headers["x-amf-parents"] = parents
    body = {"model": MODEL, "messages": chat_messages(*contents), "max_tokens": 12}
    answer = await client.request("POST", "/v1/chat/completions", json=body, headers=headers)
    assert answer.status == 200, answer.body
    return answer


async def pipeline(client: Client, run: str) -> list[tuple[int, int]]:
    """One root, two at once, one join. Returns (prompt, output) tokens of each call as the engine counted them."""
    task = LONG + run
    answers = [await hop(client, run, "plan", "", task)]
    both = (hop(client, run, name, "plan", task, "planned", name) for name in ("left", "right"))
    answers += await asyncio.gather(*both)
    answers.append(await hop(client, run, "join", "left|right", task, "planned", "left right", "done", "sum up"))
    usages = [answer.json["usage"] for answer in answers]
    return [(usage["prompt_tokens"], usage["completion_tokens"]) for usage in usages]


@pytest.mark.parametrize(("exact", "name"), [(False, "traffic.jsonl"), (True, "traffic.jsonl.gz")])
async def test_what_was_served_is_what_is_simulated(exact: bool, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    async with AsyncExitStack() as stack:
        emulated = [EmulatorConfig(model=MODEL, time_scale=SCALE, kv_tokens=20_000, seed=seed) for seed in (1, 2)]
        emulators = [await stack.enter_async_context(running(each)) for each in emulated]
        config = ServeConfig(
            server=ServerConfig(port=0, time_scale=SCALE, shutdown_grace_s=0.5),
            workers=tuple(WorkerConfig(url=each.url, name=f"w{i}", gpu="h200") for i, each in enumerate(emulators)),
            pools={MODEL: PoolConfig(tokenizer="engine")} if exact else {},
            limits=FAST,
            record=RecordConfig(path=str(path)),
        )
        gateway = await stack.enter_async_context(running_gateway(config))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        client = Client(gateway.url, session)
        served = [await pipeline(client, f"customer-{number}") for number in range(3)]

    workload = replayed(path)
    assert len(workload.pipelines) == 3
    for plan, counted in zip(workload.pipelines, served, strict=True):
        planned = Counter((call.prompt.total_tokens, call.output_tokens) for call in plan.calls)
        assert planned == Counter(counted)
        assert [call.parents for call in plan.calls] == [(), (0,), (0,), (1, 2)]
        assert [call.hop for call in plan.calls if call.index in (0, 3)] == ["plan", "join"]
        assert plan.declared and plan.graph == "fan" and plan.slo_s == pytest.approx(60.0 * SCALE, rel=0.01)
    cached = ideal_cached_by_call(workload)
    for plan in workload.pipelines:  # what begins with the same text shares it, up to a block of rounding
        root = plan.calls[0].prompt.total_tokens
        assert all(cached[plan.pipeline_id, index] > root - 150 for index in (1, 2, 3))
    assert cached[workload.pipelines[1].pipeline_id, 0] > 1000, "runs share their long beginning"

    scenario, report = tmp_path / "replay.toml", tmp_path / "report.json"
    scenario.write_text(
        f'[workload]\nkind = "recorded"\npath = "{name}"\narrival = "trace"\n'
        f'[[pool]]\nmodel = "{MODEL}"\nworkers = 2\nkv_tokens = 20000\n'
    )
    options = (str(scenario), "--policy", "round-robin,fabric", "--json", str(report))
    simulating = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "amf",
        "simulate",
        *options,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed, _ = await simulating.communicate()
    assert simulating.returncode == 0, printed.decode()
    rows = json.loads(report.read_text())
    assert [row["policy"] for row in rows] == ["round-robin", "fabric"]
    for row in rows:
        assert (row["pipelines"], row["completed"]) == (3, 3)
        assert row["prompt_tokens"] == sum(prompt for counted in served for prompt, _ in counted)
        assert any("recorded by amf" in note for note in row["notes"])


async def test_nothing_of_a_prompt_a_run_or_a_tenant_can_be_read(tmp_path: Path) -> None:
    contents = []
    for name in ("one.jsonl", "two.jsonl"):
        server = ServerConfig(port=0, api_keys=("key-of-alice",), shutdown_grace_s=0.1)
        record = RecordConfig(path=str(tmp_path / name))
        async with fake_engine() as engine, gateway_of(engine, record=record, server=server) as (_, client):
            headers = {"x-amf-run-id": "run-of-alice", "authorization": "Bearer key-of-alice"}
            assert (await client.chat("a very secret prompt", headers=headers)).status == 200
        data = (tmp_path / name).read_bytes()
        assert b"secret" not in data and b"alice" not in data
        contents.append(records(tmp_path / name)[1])
    one, two = contents
    assert one["outcome"] == two["outcome"] == "ok" and one["prompt"] == 40
    for field in ("run", "tenant", "keys"):
        assert one[field] and one[field] != two[field], f"{field}: each file has a salt of its own"


async def test_calls_without_an_answer_are_recorded_as_what_they_were(tmp_path: Path) -> None:
    path = tmp_path / "traffic.jsonl"
    engine = FakeEngine()
    async with fake_engine(engine), gateway_of(engine, record=RecordConfig(path=str(path))) as (gateway, client):
        assert (await client.chat("fine")).status == 200
        engine.fault = "400"
        assert (await client.chat("no")).status == 400
        engine.fault = "hold"
        engine.arrived.clear()
        waiting = asyncio.create_task(client.chat("gone"))
        await engine.arrived.wait()
        waiting.cancel()
        await until(lambda: gateway.driver.open_calls() == 0)
        engine.release.set()
    outcomes = [line["outcome"] for line in records(path)[1:]]
    assert outcomes == ["ok", "failed", "cancelled"]
    workload = replayed(path)
    assert len(workload.pipelines) == 1
    assert any("1 calls cancelled, 1 calls failed" in note for note in workload.notes)


def ended(number: int, run: str = "r", blocks: int = 4) -> Ended:
    keys = tuple(range(1, blocks + 1))
    prefix = Prefix(keys=keys, ends=range(16, 16 * blocks + 1, 16), total_tokens=16 * blocks + 3)
    call = Call(call_id=str(number), run_id=run, pool="m", prefix=prefix, slo_class=SloClass.BACKGROUND)
    at_s = float(number)
    return Ended(
        call=call,
        outcome="ok",
        arrived_s=at_s,
        first_s=None,
        ended_s=at_s + 0.25,
        prompt_tokens=prefix.total_tokens,
        output_tokens=5,
        cached_tokens=None,
        worker="w",
    )


def test_what_a_kill_leaves_can_be_read(tmp_path: Path) -> None:
    """The file cut at every place: never an error but where not even one call is left."""
    for name in ("whole.jsonl", "whole.jsonl.gz"):
        recorder = Recorder(tmp_path / name, "fabric")
        for number in range(5):
            recorder.ended(ended(number, blocks=4 + number))
            recorder.lines.hand_over()
            recorder.lines.wait()
        recorder.lines.close()
        data = (tmp_path / name).read_bytes()
        assert len(replayed(tmp_path / name).pipelines[0].calls) == 5
        seen = set()
        for cut in range(len(data) * 2 // 3, len(data), 7):
            torn = tmp_path / f"torn-{name}"
            torn.write_bytes(data[:cut])
            seen.add(len(replayed(torn).pipelines[0].calls))
        assert seen <= {1, 2, 3, 4, 5} and min(seen) < 5 and max(seen) >= 4


async def test_a_killed_gateway_leaves_what_was_flushed(tmp_path: Path) -> None:
    path = tmp_path / "traffic.jsonl.gz"
    code = "import typer; from amf.commands.serve import serve; typer.run(serve)"
    async with fake_engine() as engine, aiohttp.ClientSession() as session:
        options = ("--port", "0", "--worker", engine.url, "--record", str(path))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, *options, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        try:
            assert process.stdout is not None
            ready = (await process.stdout.readline()).decode()
            client = Client(ready.split("listening on ")[1].split()[0], session)
            header_bytes = path.stat().st_size
            assert (await client.chat("hi")).status == 200
            await until(lambda: path.stat().st_size > header_bytes + 100)
        finally:
            process.kill()
            await process.wait()
    (plan,) = replayed(path).pipelines
    assert [(call.prompt.total_tokens, call.output_tokens) for call in plan.calls] == [(40, 3)]


def test_a_recording_is_never_written_over(tmp_path: Path) -> None:
    for expected in ("t.jsonl.gz", "t.2.jsonl.gz", "t.3.jsonl.gz"):
        recorder = Recorder(tmp_path / "t.jsonl.gz", "fabric")
        recorder.ended(ended(0))
        recorder.lines.close()
        assert recorder.path.name == expected
    assert free_name(tmp_path / "plain") == tmp_path / "plain"
    workload = replayed(tmp_path / "t.*")
    assert len(workload.pipelines) == 3, "several files are played one after another"
    assert [plan.arrival_s for plan in workload.pipelines] == pytest.approx([0.0, 0.25, 0.5])


def test_a_slow_disk_costs_calls_of_the_recording_and_nothing_else(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "t.jsonl", "fabric", max_buffer_bytes=1_000)
    recorder.lines.wait()
    stuck = threading.Event()
    recorder.lines._disk.submit(stuck.wait)
    for number in range(20):
        recorder.ended(ended(number, run=str(number)))
    assert recorder.left_out > 10
    stuck.set()
    recorder.lines.close()
    lines = records(tmp_path / "t.jsonl")[1:]
    assert len(lines) == 20 - recorder.left_out
    assert len(replayed(tmp_path / "t.jsonl").pipelines) == len(lines), "what is there is whole"

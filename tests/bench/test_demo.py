"""The demo from end to end, very short; and that no process outlives it, however it ends."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner

from amf.commands.demo import demo
from amf.demo.processes import ChildError, Children
from amf.demo.workload import CALLS_PER_SESSION, GAP_CAP_S, DemoSize, demo_work

AMF = [sys.executable, "-m", "amf", "demo", "--seconds", "10"]


def children_of(pid: int) -> list[int]:
    """Direct children, from the kernel."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_the_demo_runs_unattended_and_writes_its_report(tmp_path: Path) -> None:
    page, reports = tmp_path / "d.html", tmp_path / "d.json"
    done = subprocess.run(
        [*AMF, "--policies", "session-affinity,fabric", "--json", str(reports), "--html", str(page)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(reports.read_text())
    assert [(row["policy"], row["workload"]) for row in rows] == [
        (policy, workload)
        for policy in ("session-affinity", "fabric")
        for workload in ("coding-sessions", "coding-7hop")
    ]
    assert all(row["failed"] == row["refused"] == 0 for row in rows), done.stdout
    assert sum(row["prompt_tokens"] for row in rows) > 0 and all(row["cost_usd"] > 0 for row in rows)
    for said in ("SYNTHETIC", "NOT better", "driver lag", f"page: {page}"):
        assert said in done.stdout
    assert "<svg" in page.read_text()
    assert not list(tmp_path.glob("amf-demo-*"))


@pytest.mark.skipif(not Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists(), reason="needs Linux /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_demo_and_everything_it_started(tmp_path: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        AMF, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("starting"):
            break
    children: list[int] = []
    while len(children) < 8 and process.poll() is None:
        children = children_of(process.pid)
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130, output
    assert len(children) == 8 and all(gone(child) for child in children)
    assert "all processes are stopped" in output and "logs: " in output


async def test_a_child_that_cannot_start_is_explained_with_its_log(tmp_path: Path) -> None:
    with Children(tmp_path) as children:
        child = children.start("bad", "emulate", "--model", "no-such-model")
        with pytest.raises(ChildError, match=r"bad ended with status 2[\s\S]*bad\.log[\s\S]*no-such-model"):
            await child.url(30)
        assert not child.alive


def test_the_work_is_the_same_for_a_seed_and_short_of_memory() -> None:
    size = DemoSize.fitting(1200)
    work, again, other = (demo_work(size, seed, None) for seed in (1, 1, 2))
    assert work == again and work.sessions != other.sessions
    sizes = [(len(plan.calls), call.gap_s) for plan in work.sessions.pipelines for call in plan.calls]
    assert all(calls <= CALLS_PER_SESSION and gap_s <= GAP_CAP_S for calls, gap_s in sizes)
    assert all(plan.slo_s == 2 * (plan.standalone_s or 0) for plan in work.sessions.pipelines)
    assert len(work.pools) == 4 and sum(pool.workers for pool in work.pools) >= 8
    pool = work.pools[0]
    prompts = [call.prompt.total_tokens for plan in work.sessions.pipelines for call in plan.calls]
    live_tokens = size.live_sessions * sum(prompts) / len(prompts)
    assert pool.kv_tokens is not None and 1.5 < live_tokens / (pool.kv_tokens * pool.workers) < 3
    assert max(prompts) < pool.kv_tokens


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--policies", "nope"], "unknown policy 'nope'"), (["--trace", "/nowhere.gz"], "/nowhere.gz: cannot be read")],
)
def test_misuse_is_said_before_anything_starts(arguments: list[str], said: str) -> None:
    app = Typer()
    app.command()(demo)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and said in result.output

"""`amf simulate` from the outside: examples, files it writes, processes, interrupts, and what it says to mistakes."""

import contextlib
import gzip
import json
import math
import os
import re
import signal
import subprocess
import sys
import tomllib
from base64 import b64encode
from pathlib import Path

import pytest
from typer.testing import CliRunner

from amf.cli import app

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = """
[workload]
kind = "coding-sessions"
pipelines = 5
concurrency = 5
scale_tokens = 0.05
think_cap_s = 60

[[pool]]
model = "llama-3.1-8b"
workers = 2
kv_tokens = 30_000

[faults]
worker_loss_per_h = 2.0
event_loss = 0.1
event_delay_s = 1.0

[run]
policies = ["session-affinity", "fabric"]
"""


def simulate(*arguments: object):
    return CliRunner().invoke(app, ["simulate", *(str(each) for each in arguments)])


def refusal(*arguments: object) -> str:
    result = simulate(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.output


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


def recordings(folder: Path) -> None:
    """What the recorded examples ask for, in small."""
    calls = [
        {"id": "0", "p": [], "t": 0.0, "dur": 1.0, "gap": None, "kind": "tool", "model": "m", "agent": "main",
         "in": 640, "out": 20, "new": [[1, 10]]},
        {"id": "1", "p": ["0"], "t": 5.0, "dur": 1.0, "gap": 4.0, "kind": "tool", "model": "m", "agent": "main",
         "in": 900, "out": 20, "ref": "0", "keep": 10, "new": [[30, 4]]},
    ]  # fmt: skip
    with gzip.open(folder / "sessions.jsonl.gz", "wt") as lines:
        lines.write(
            json.dumps({"session": "s", "block": 64, "tool_tokens": 0, "system_tokens": 0, "calls": calls}) + "\n"
        )
    requests = [
        {"timestamp": 1000 * i, "input_length": 1500, "output_length": 30, "hash_ids": [0, 1, 2 + i]} for i in range(5)
    ]
    (folder / "conversation_trace.jsonl").write_text("".join(json.dumps(each) + "\n" for each in requests))
    usage = {"gen_ai.usage.input_tokens": 900, "gen_ai.usage.output_tokens": 30}
    spans = [
        {"trace_id": f"t{i // 2}", "span_id": f"s{i}", "parent_span_id": None, "name": "chat", "links": [],
         "start_time": f"2026-02-25T10:00:0{2 * i}Z", "end_time": f"2026-02-25T10:00:0{2 * i + 1}Z",
         "attributes": {"gen_ai.operation.name": "chat", "gen_ai.request.model": ("gpt-4o", "small")[i % 2]} | usage}
        for i in range(4)
    ]  # fmt: skip
    (folder / "traces").mkdir()
    (folder / "traces" / "spans.json").write_text(json.dumps({"spans": spans}))
    header = {"amf_recording": 1, "version": "1", "policy": "fabric"}
    answered = [
        {"n": i, "run": f"r{i}", "at": 1.0 + i, "end": 2.0 + i, "outcome": "ok", "pool": "llama-3.1-8b", "prompt": 700,
         "output": 20, "estimate": 700, "keys": b64encode(bytes([i] * 80)).decode(), "size": 64}
        for i in range(2)
    ]  # fmt: skip
    with gzip.open(folder / "traffic.jsonl.gz", "wt") as lines:
        lines.writelines(json.dumps(each) + "\n" for each in (header, *answered))


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_example_runs_under_its_own_policies(example: Path, tmp_path: Path):
    recordings(tmp_path)
    copy = tmp_path / example.name
    copy.write_text(example.read_text())
    result = simulate(copy, "--pipelines", 2, "--jobs", 1, "--json", tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    reports = json.loads((tmp_path / "out.json").read_text())
    own = tomllib.loads(example.read_text()).get("run", {})
    named = own.get(
        "policies", ["round-robin", "session-affinity", "fabric"]
    )  # the default that docs/scenarios.md gives
    assert [report["policy"] for report in reports] == named
    assert all(report["completed"] == report["pipelines"] == 2 for report in reports)
    assert "fabric against the strongest rival" in result.output and "use --seeds" in result.output


def test_one_seed_gives_one_file_to_the_byte(small: Path, tmp_path: Path):
    """In this process, over a pool, and in a process with another hash seed."""
    files = [tmp_path / f"{name}.json" for name in ("alone", "pool", "other")]
    for jobs, file in zip((1, 2), files, strict=False):
        result = simulate(small, "--seeds", 2, "--seed", 3, "--jobs", jobs, "--json", file)
        assert result.exit_code == 0, result.output
    command = [sys.executable, "-m", "amf", "simulate", str(small), "--seeds", "2", "--seed", "3", "--jobs", "1"]
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    subprocess.run([*command, "--json", str(files[2])], check=True, env=environment, timeout=60, capture_output=True)
    alone, pool, other = (file.read_bytes() for file in files)
    assert alone == pool == other
    assert [(report["seed"], report["policy"]) for report in json.loads(alone)] == [
        (3, "session-affinity"), (3, "fabric"), (4, "session-affinity"), (4, "fabric"),
    ]  # fmt: skip


def test_several_seeds_give_means_and_intervals(small: Path):
    result = simulate(small, "--seeds", 3, "--jobs", 1, "--policy", "round-robin, fabric")
    assert result.exit_code == 0, result.output
    assert "means over 3 seeds, 7 to 9" in result.output
    assert re.search(
        r"JCT mean +[\d.]+x +\[[\d.]+, [\d.]+\] +(better|worse|inside the noise) +round-robin", result.output
    )
    rows = [line.split()[0] for line in result.output.splitlines() if " coding-sessions " in line]
    assert rows == ["round-robin", "fabric"]


def test_runs_that_are_copies_of_each_other_get_no_interval(tmp_path: Path):
    recordings(tmp_path)
    copy = tmp_path / "mooncake.toml"
    copy.write_text((EXAMPLES / "mooncake.toml").read_text())
    result = simulate(copy, "--seeds", 2, "--jobs", 1, "--policy", "round-robin,fabric")
    assert result.exit_code == 0, result.output
    assert "[" not in result.output.split("strongest rival")[1]


def test_the_page_stands_alone_and_shows_the_slowest_pipelines(small: Path, tmp_path: Path):
    page = tmp_path / "page.html"
    result = simulate(small, "--seeds", 2, "--jobs", 1, "--html", page)
    assert result.exit_code == 0, result.output
    html = page.read_text()
    assert not re.search(r"""(src|href)=["']https?:""", html) and "<script" not in html
    assert html.count('class="waterfall"') == 2 * 2, "the two slowest of each policy"
    assert "fabric against the strongest rival" in html and "prompt tokens" in html


def test_the_json_says_how_the_fabric_compares(small: Path, tmp_path: Path):
    file = tmp_path / "out.json"
    assert simulate(small, "--seeds", 2, "--jobs", 1, "--json", file).exit_code == 0
    reports = json.loads(file.read_text())
    rivals, ours = ([report for report in reports if (report["policy"] == "fabric") == mine] for mine in (False, True))
    assert all("comparison" not in report for report in rivals)
    assert ours[0]["comparison"] == ours[1]["comparison"]
    jct = next(each for each in ours[0]["comparison"] if each["figure"] == "jct_s.mean")
    ratios = [theirs["jct_s"]["mean"] / own["jct_s"]["mean"] for theirs, own in zip(rivals, ours, strict=True)]
    assert jct["gain"] == pytest.approx(math.sqrt(math.prod(ratios))) and jct["rival"] == "session-affinity"
    assert jct["ci95"][0] < jct["gain"] < jct["ci95"][1]
    assert jct["verdict"] in ("better", "worse", "inside the noise")


def test_loads_run_in_an_open_loop_and_are_drawn(small: Path, tmp_path: Path):
    file, page = tmp_path / "out.json", tmp_path / "page.html"
    result = simulate(small, "--loads", "0.9,0.3", "--jobs", 1, "--json", file, "--html", page)
    assert result.exit_code == 0, result.output
    reports = json.loads(file.read_text())
    assert [(report["load"], report["policy"]) for report in reports] == [
        (0.3, "session-affinity"), (0.3, "fabric"), (0.9, "session-affinity"), (0.9, "fabric"),
    ]  # fmt: skip
    assert reports[0]["workload"] == "coding-sessions at load 0.3"
    assert reports[1]["gpu_s"] > reports[3]["gpu_s"], "the same pipelines arrive later at a lower load"
    assert "Deadlines met" in page.read_text() and "Goodput, pipelines/s" in page.read_text()
    assert "no list of numbers" in refusal(small, "--loads", "0.5;0.7")
    assert "above 0" in refusal(small, "--loads", "0,0.7")
    recordings(tmp_path)
    timed = tmp_path / "mooncake.toml"
    timed.write_text((EXAMPLES / "mooncake.toml").read_text())
    assert "times of its own" in refusal(timed, "--loads", "0.5")


def test_ray_plays_the_same_as_this_process(small: Path, tmp_path: Path):
    pytest.importorskip("ray")
    files = [tmp_path / "here.json", tmp_path / "there.json"]
    assert simulate(small, "--jobs", 1, "--json", files[0]).exit_code == 0
    command = [sys.executable, "-m", "amf", "simulate", str(small), "--jobs", "2", "--ray", "local"]
    subprocess.run([*command, "--json", str(files[1])], check=True, timeout=120, capture_output=True)
    assert files[0].read_bytes() == files[1].read_bytes()
    small.write_text(SMALL.replace("kv_tokens = 30_000", "kv_tokens = 300"))
    wrong = subprocess.run(command, timeout=120, capture_output=True, text=True)
    assert wrong.returncode == 2 and "raise its kv_tokens" in wrong.stderr


def test_without_ray_it_is_said_how_to_get_it(small: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "amf.simulate.ray_pool", raising=False)
    assert "pip install 'agent-memory-fabric[ray]'" in refusal(small, "--ray", "local").replace("\n", " ")


def test_mistakes_are_refused_with_file_key_and_remedy(small: Path, tmp_path: Path):
    assert "did you mean session-affinity" in refusal(small, "--policy", "session-afinity")
    assert "cannot be read" in refusal(tmp_path / "absent.toml")
    assert "--html" in (answer := refusal(small, "--html", tmp_path / "nowhere" / "page.html")) and "[1/" not in answer
    for old, new, said in (
        ("pipelines = 5", "pipeline = 5", "did you mean 'pipelines'"),
        ('"fabric"]', '"fabrik"]', "[run] policies: unknown policy 'fabrik'; did you mean fabric"),
        ('"llama-3.1-8b"', '"llama-3.1-9b"', "llama-3.1-9b"),
        ("event_loss = 0.1", "event_loss = 10", "use 0 to 1"),
        ("[run]", "[fabric]\nhold_fractoin = 0.1\n\n[run]", "did you mean 'hold_fraction'"),
        ("[run]", "[fabric]\nlapse_s = -1.0\n\n[run]", "must not be negative"),
        ("kv_tokens = 30_000", "kv_tokens = 300", "raise its kv_tokens"),
    ):
        small.write_text(SMALL.replace(old, new))
        answer = refusal(small, "--jobs", 2)
        assert str(small) in answer.replace("\n", "") and said in answer.replace("\n", " "), answer
    assert "cannot be read" in refusal(EXAMPLES / "mooncake.toml"), "no recording beside it"


@pytest.mark.parametrize(
    ("signum", "after"),
    [(signal.SIGINT, "[1/"), (signal.SIGINT, "runs "), (signal.SIGTERM, "runs ")],
    ids=["ctrl-c", "ctrl-c at once", "terminated at once"],
)
def test_an_interrupt_ends_all_processes(small: Path, signum: int, after: str):
    command = [sys.executable, "-m", "amf", "simulate", str(small), "--seeds", "500", "--jobs", "2"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stderr is not None
        while after not in process.stderr.readline():
            assert process.poll() is None
        if signum == signal.SIGINT:
            os.killpg(process.pid, signum)  # as a terminal does
        else:
            process.send_signal(signum)
        output, errors = process.communicate(timeout=60)  # ends when the last process that holds the pipes has left
        assert process.returncode == 130, errors
        said = [line for line in errors.splitlines() if not line.startswith("[")]
        assert len(said) == 1 and re.fullmatch(r"amf simulate: interrupted after \d+ of 1000 runs", said[0]), errors
        assert not output
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_processes_leave_when_the_command_is_killed(small: Path):
    command = [sys.executable, "-m", "amf", "simulate", str(small), "--seeds", "500", "--jobs", "2"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    while "[1/" not in process.stderr.readline():
        assert process.poll() is None
    process.kill()
    process.communicate(timeout=60)  # as above

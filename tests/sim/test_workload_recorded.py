"""Recorded traces: decoded without expansion, to the same sharing as a naive decoder, on made-up and on real files."""

import gzip
import json
import os
from pathlib import Path
from random import Random

import pytest

from amf.sim.plan import PromptPlan
from amf.sim.scenario import PoolSpec, ScenarioError, WorkloadSpec
from amf.sim.workload import SHARED_BLOCKS, block_namespace, build, ideal_cached_by_call

POOL = (PoolSpec(model="llama-3.3-70b", workers=2, kv_tokens=2_000_000),)


def traces() -> Path:
    """The folder of real recordings: AMF_TRACES, or shared/traces beside the repository."""
    found = Path(os.environ.get("AMF_TRACES", Path(__file__).parents[3] / "shared" / "traces"))
    if not found.is_dir():
        pytest.skip(f"no recordings: set AMF_TRACES to a folder that has them (looked in {found})")
    return found


def expanded(prompt: PromptPlan) -> list[tuple[str, int]]:
    ids = [block for first, count in prompt.runs for block in range(first, first + count)]
    return [(block_namespace(prompt, block), block) for block in ids]


def naive_blocks(session: dict) -> list[list[int]]:
    """One object per block: what the run-based decoder must agree with."""
    blocks: dict[str, list[int]] = {}
    for call in session["calls"]:
        kept = blocks[call["ref"]][: call["keep"]] if "ref" in call else []
        blocks[call["id"]] = kept + [block for first, count in call["new"] for block in range(first, first + count)]
    return list(blocks.values())


def made_up_session(name: str, rng: Random) -> dict:
    calls: list[dict] = []
    sizes: list[int] = []
    for index in range(rng.randint(1, 12)):
        ref = rng.randrange(index) if index and rng.random() < 0.9 else None
        keep = rng.randint(0, sizes[ref]) if ref is not None else 0
        new = [[rng.randint(1, 300), rng.randint(1, 9)] for _ in range(rng.randint(0, 3))]
        sizes.append(keep + sum(count for _, count in new))
        call = {
            "id": str(index), "p": [str(index - 1)] if index else [], "t": 10.0 * index, "dur": 2.0,
            "gap": 5.0 if index else None, "kind": rng.choice(["tool", "think"]), "model": "m", "agent": "main",
            "in": sizes[-1] * 64 + rng.randrange(64), "out": rng.randrange(50), "ends": "tool", "new": new,
        }  # fmt: skip
        calls.append(call | ({"ref": str(ref), "keep": keep} if ref is not None else {}))
    return {"session": name, "block": 64, "tool_tokens": 0, "system_tokens": 0, "calls": calls}


def written(path: Path, records: list[dict]) -> Path:
    with gzip.open(path, "wt") as lines:
        lines.writelines(json.dumps(record) + "\n" for record in records)
    return path


def spec(path: Path, **changes) -> WorkloadSpec:
    return WorkloadSpec(**({"kind": "claude-code", "path": path, "slo_stretch": 3.0, "concurrency": 4} | changes))


def check_against_naive(sessions: list[dict], path: Path) -> None:
    workload = build(spec(path, pipelines=len(sessions)), POOL)
    plans = {plan.pipeline_id.split("/")[1]: plan for plan in workload.pipelines}
    assert len(plans) == len(sessions)
    for session in sessions:
        plan = plans[session["session"]]
        for call, entry, blocks in zip(plan.calls, session["calls"], naive_blocks(session), strict=True):
            assert [block - SHARED_BLOCKS for _, block in expanded(call.prompt)] == blocks
            assert call.prompt.total_tokens == entry["in"]
            assert call.output_tokens == max(1, entry["out"])
            assert [session["calls"][parent]["id"] for parent in call.parents] == entry["p"]


def naive_ideal(workload) -> dict[tuple[str, int], int]:
    """Every prefix of every prompt in a set: quadratic, obviously right."""
    seen: set[tuple] = set()
    ideal = {}
    for plan in workload.pipelines:
        for call in plan.calls:
            blocks, known, chain = expanded(call.prompt), 0, 0
            for depth, block in enumerate(blocks, start=1):
                chain = hash((chain, block))
                if (call.pool, depth, chain) in seen:
                    known = depth
                seen.add((call.pool, depth, chain))
            tokens = min(known * call.prompt.block_tokens, call.prompt.total_tokens - 1)
            ideal[plan.pipeline_id, call.index] = max(0, tokens)
    return ideal


@pytest.mark.parametrize("seed", range(8))
def test_random_sessions_decode_like_the_naive_decoder(tmp_path, seed):
    rng = Random(seed)
    sessions = [made_up_session(f"s{number}", rng) for number in range(12)]
    sessions = [each for each in sessions if all(call["in"] > 0 for call in each["calls"])]
    path = written(tmp_path / "s.jsonl.gz", sessions)
    check_against_naive(sessions, path)
    workload = build(spec(path, pipelines=2 * len(sessions)), POOL)
    assert ideal_cached_by_call(workload) == naive_ideal(workload)


def test_real_sessions_decode_like_the_naive_decoder():
    path = traces() / "claude_code_sessions.jsonl.gz"
    with gzip.open(path, "rt") as lines:
        sessions = [json.loads(line) for line in lines]
    check_against_naive(sessions, path)


def test_real_sessions_have_the_published_ideal_hit():
    workload = build(spec(traces() / "claude_code_sessions.jsonl.gz", pipelines=144), POOL)
    prompt = sum(call.prompt.total_tokens for plan in workload.pipelines for call in plan.calls)
    assert 0.95 < sum(ideal_cached_by_call(workload).values()) / prompt < 0.97


def test_repeated_sessions_share_nothing_and_seeds_decide_the_order(tmp_path):
    rng = Random(1)
    path = written(tmp_path / "s.jsonl.gz", [made_up_session(f"s{number}", rng) for number in range(5)])
    workload = build(spec(path, pipelines=12), POOL, seed=3)
    assert workload == build(spec(path, pipelines=12), POOL, seed=3)
    assert [plan.pipeline_id for plan in workload.pipelines] != [
        plan.pipeline_id for plan in build(spec(path, pipelines=12), POOL, seed=4).pipelines
    ]
    assert len({plan.pipeline_id for plan in workload.pipelines}) == 12
    owners = [{call.prompt.namespace for call in plan.calls} for plan in workload.pipelines]
    assert all(len(each) == 1 for each in owners) and len(set().union(*owners)) == 12
    assert any("repeated" in note for note in workload.notes)


def test_gaps_lanes_and_pools(tmp_path):
    def call(name, parents, **changes):
        base = {"id": name, "p": parents, "t": 0.0, "dur": 1.0, "gap": 4.0, "kind": "tool", "model": "llama-3.1-8b",
                "agent": "main", "in": 100, "out": 5, "ends": "tool", "new": [[1, 1]]}  # fmt: skip
        return base | changes

    session = {
        "session": "x", "block": 64, "tool_tokens": 0, "system_tokens": 0,
        "calls": [
            call("0", [], gap=None, kind="think"),
            call("1", ["0"], gap=900.0),
            call("2", ["1"], gap=900.0, kind="think"),
            call("3.0", ["2"], gap=None, t=50.0, agent="helper", model="other"),
            call("3.1", ["3.0"], gap=2.0, t=60.0, dur=10.0, agent="helper"),
            call("4", ["2", "3.1"], gap=33.0, t=99.0),
            call("5", ["4"], gap=None, t=107.5, kind="think"),
        ],
    }  # fmt: skip
    path = written(tmp_path / "s.jsonl.gz", [session])
    plan = build(spec(path, pipelines=1, think_cap_s=300.0), POOL).pipelines[0]
    gaps = [each.gap_s for each in plan.calls]
    # The join waits for the helper itself (20 s as recorded) and then what was left of its gap.
    assert gaps == [0.0, 900.0, 300.0, 0.0, 2.0, 13.0, 7.5]
    assert [each.lane for each in plan.calls] == ["", "", "", "helper", "helper", "", ""]
    assert {each.pool for each in plan.calls} == {"llama-3.3-70b"}
    several = (*POOL, PoolSpec(model="llama-3.1-8b"))
    pools = [each.pool for each in build(spec(path, pipelines=1), several).pipelines[0].calls]
    assert pools == ["llama-3.1-8b"] * 3 + ["llama-3.3-70b"] + ["llama-3.1-8b"] * 3


def test_sessions_that_fit_no_worker_are_left_out_and_said_so(tmp_path):
    rng = Random(2)
    small, large = made_up_session("small", rng), made_up_session("large", rng)
    large["calls"][0] |= {"new": [[1, 1000]], "in": 64_000}
    path = written(tmp_path / "s.jsonl.gz", [small, large])
    tight = (PoolSpec(model="llama-3.3-70b", kv_tokens=40_000),)
    workload = build(spec(path, pipelines=2), tight)
    assert {plan.pipeline_id.split("/")[1] for plan in workload.pipelines} == {"small"}
    assert any("1 of 2 sessions left out" in note for note in workload.notes)
    with pytest.raises(ScenarioError, match="kv_tokens"):
        build(spec(path, pipelines=2), (PoolSpec(model="llama-3.3-70b", kv_tokens=1),))


@pytest.mark.parametrize(
    "line",
    ["{", "[]", '{"session": "x"}', '{"session": "x", "block": 64, "calls": []}',
     '{"session": "x", "block": 64, "calls": [{"id": "0", "p": ["9"], "new": []}]}'],
)  # fmt: skip
def test_damaged_recordings_name_file_and_line(tmp_path, line):
    good = json.dumps(made_up_session("good", Random(0)))
    path = tmp_path / "s.jsonl"
    path.write_text(f"{good}\n{line}\n")
    with pytest.raises(ScenarioError, match=r"s\.jsonl: line 2"):
        build(spec(path), POOL)


def test_missing_empty_and_cut_files(tmp_path):
    with pytest.raises(ScenarioError, match="cannot be read"):
        build(spec(tmp_path / "absent"), POOL)
    (tmp_path / "empty").write_text("")
    with pytest.raises(ScenarioError, match="no records"):
        build(spec(tmp_path / "empty"), POOL)
    whole = written(tmp_path / "s.jsonl.gz", [made_up_session("s", Random(0))]).read_bytes()
    (tmp_path / "cut.gz").write_bytes(whole[:-20])
    with pytest.raises(ScenarioError, match="damaged"):
        build(spec(tmp_path / "cut.gz"), POOL)


MOONCAKE = [
    {"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]},
    {"timestamp": 3000, "input_length": 1024, "output_length": 0, "hash_ids": [0, 1]},
    {"timestamp": 1500, "input_length": 300, "output_length": 7, "hash_ids": [9]},
]


def test_mooncake_keeps_lengths_times_and_global_sharing(tmp_path):
    path = written(tmp_path / "m.jsonl.gz", MOONCAKE)
    workload = build(spec(path, kind="mooncake", arrival="trace", concurrency=None, pipelines=10), POOL)
    assert [plan.arrival_s for plan in workload.pipelines] == [0.0, 1.5, 3.0]
    calls = [plan.calls[0] for plan in workload.pipelines]
    assert [call.prompt.total_tokens for call in calls] == [1100, 300, 1024]
    assert [call.output_tokens for call in calls] == [5, 7, 1]
    assert list(ideal_cached_by_call(workload).values()) == [0, 0, 1023]
    assert any("3 of the 10" in note for note in workload.notes)
    closed = build(spec(path, kind="mooncake", pipelines=2), POOL)
    assert [plan.arrival_s for plan in closed.pipelines] == [None, None] and closed.concurrency == 4


def test_real_mooncake_requests_keep_their_lengths():
    path = traces() / "mooncake_conversation_first30min.jsonl.gz"
    with gzip.open(path, "rt") as lines:
        records = sorted((json.loads(line) for line in lines), key=lambda each: each["timestamp"])
    workload = build(spec(path, kind="mooncake", arrival="trace", concurrency=None, pipelines=10_000), POOL)
    lengths = [plan.calls[0].prompt.total_tokens for plan in workload.pipelines]
    assert lengths == [record["input_length"] for record in records]
    naive = [len(record["hash_ids"]) for record in records]
    assert [plan.calls[0].prompt.blocks for plan in workload.pipelines] == [
        length // 512 for length in lengths
    ] and sum(naive) >= sum(length // 512 for length in lengths)


def test_azure_requests_share_nothing(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n"
        "2023-11-16 18:17:05.0000000,64,8\n2023-11-16 18:17:04.0319600,3,0\n"
    )
    workload = build(spec(path, kind="azure", arrival="trace", concurrency=None, pipelines=9), POOL)
    assert [plan.calls[0].prompt.total_tokens for plan in workload.pipelines] == [4808, 3, 64]
    assert [plan.arrival_s for plan in workload.pipelines] == pytest.approx([0.0, 0.052, 1.02004], abs=1e-6)
    assert sum(ideal_cached_by_call(workload).values()) == 0
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2\n")
    with pytest.raises(ScenarioError, match="line 2"):
        build(spec(path, kind="azure"), POOL)

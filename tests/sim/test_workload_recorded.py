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
    with pytest.raises(ScenarioError, match=r'calls other, which no \[\[pool\]\] serves.*"other" = "llama-3.3-70b"'):
        build(spec(path, pipelines=1), several)
    for models in ((("other", "llama-3.3-70b"),), (("*", "llama-3.3-70b"),)):
        pools = [each.pool for each in build(spec(path, pipelines=1, models=models), several).pipelines[0].calls]
        assert pools == ["llama-3.1-8b"] * 3 + ["llama-3.3-70b"] + ["llama-3.1-8b"] * 3
    with pytest.raises(ScenarioError, match=r"'other' = 'gpt-4': there is no such \[\[pool\]\]"):
        build(spec(path, pipelines=1, models=(("other", "gpt-4"),)), several)


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


def in_both_forms() -> tuple[dict, dict]:
    """One session with two sub-agents side by side, one inside the other's lane, and a context reset; as recorded upstream
    and in the compact form."""

    def request(t, ids, *, model="opus", out=9, think=None, tool=True, took=2.0):
        return {
            "t": t, "type": "n", "model": model, "in": 64 * len(ids) + 5, "out": out, "hash_ids": ids,
            "input_types": ["tool_result"] if tool else ["text"], "stop": "tool_use", "api_time": took,
        } | ({} if think is None else {"think_time": think})  # fmt: skip

    def agent(name, t, *requests):
        return {"type": "subagent", "agent_id": name, "t": t, "requests": list(requests)}

    inner = agent("c", 3.0, request(0.0, [90, 91], model="haiku"))
    last = request(9.0, [50, 51, 52], model="haiku", think=7.0)
    original = {
        "id": "s1", "models": ["opus", "haiku"], "block_size": 64, "hash_id_scope": "local",
        "tool_tokens": 130, "system_tokens": 70,
        "requests": [
            request(0.0, [1, 2, 3, 4], tool=False, think=0.0),
            request(12.0, [1, 2, 3, 4, 5, 6], think=10.0),
            agent("a", 15.0, request(0.0, [50, 51], model="haiku"), inner, last),
            agent("b", 16.0, request(0.0, [50, 60], model="haiku")),
            request(40.0, [1, 2, 3, 4, 5, 6, 7], think=26.0),
            request(1000.0, [1, 2, 80], tool=False, think=950.0),
            request(1010.0, [1, 2, 80, 81], tool=True),
        ],
    }  # fmt: skip

    def call(name, parents, t, **more):
        base = {
            "id": name,
            "p": parents,
            "t": t,
            "dur": 2.0,
            "gap": None,
            "kind": "tool",
            "model": "opus",
            "agent": "main",
            "out": 9,
        }
        return base | more

    haiku = {"model": "haiku"}
    compact = {
        "session": "s1", "block": 64, "tool_tokens": 130, "system_tokens": 70,
        "calls": [
            call("0", [], 0.0, kind="think", new=[[1, 4]], **{"in": 261}),
            call("1", ["0"], 12.0, gap=10.0, ref="0", keep=4, new=[[5, 2]], **{"in": 389}),
            call("2.0", ["1"], 15.0, agent="a", new=[[50, 2]], **{"in": 133}, **haiku),
            call("2.1.0", ["2.0"], 18.0, agent="c", new=[[90, 2]], **{"in": 133}, **haiku),
            call("2.2", ["2.0", "2.1.0"], 24.0, gap=7.0, agent="a", ref="2.0", keep=2, new=[[52, 1]], **{"in": 197}, **haiku),
            call("3.0", ["1"], 16.0, agent="b", ref="2.0", keep=1, new=[[60, 1]], **{"in": 133}, **haiku),
            call("4", ["1", "2.2", "3.0"], 40.0, gap=26.0, ref="1", keep=6, new=[[7, 1]], **{"in": 453}),
            call("5", ["4"], 1000.0, gap=950.0, kind="think", ref="4", keep=2, new=[[80, 1]], **{"in": 197}),
            call("6", ["5"], 1010.0, ref="5", keep=3, new=[[81, 1]], **{"in": 261}),
        ],
    }  # fmt: skip
    return original, compact


def test_the_original_json_and_the_compact_form_make_the_same_plan(tmp_path):
    original, compact = in_both_forms()
    (tmp_path / "originals").mkdir()
    (tmp_path / "originals" / "trace_1.json").write_text(json.dumps(original, indent=1))
    (tmp_path / "lines.jsonl").write_text(json.dumps(original) + "\n")
    (tmp_path / "compact.jsonl").write_text(json.dumps(compact) + "\n")
    pools = (*POOL, PoolSpec(model="llama-3.1-8b"))
    models = (("opus", "llama-3.3-70b"), ("haiku", "llama-3.1-8b"))
    names = ("compact.jsonl", "lines.jsonl", "originals", "originals/*.json", "originals/trace_1.json")
    plans = [build(spec(tmp_path / name, pipelines=2, models=models), pools).pipelines for name in names]
    assert all(each == plans[0] for each in plans)
    plan = plans[0][0]
    assert [call.gap_s for call in plan.calls] == [0.0, 10.0, 0.0, 0.0, 5.0, 0.0, 26.0 - 11.0, 300.0, 8.0]
    assert [call.lane for call in plan.calls] == ["", "", "a", "c", "a", "b", "", "", ""]
    assert [call.parents for call in plan.calls] == [(), (0,), (1,), (2,), (2, 3), (1,), (1, 4, 5), (6,), (7,)]


def test_an_agent_that_is_met_again_is_another_lane(tmp_path):
    original, _ = in_both_forms()
    original["requests"][3]["agent_id"] = "a"
    (tmp_path / "t.json").write_text(json.dumps(original))
    plan = build(spec(tmp_path / "t.json", pipelines=1), POOL).pipelines[0]
    assert [call.lane for call in plan.calls] == ["", "", "a", "c", "a", "a#2", "", "", ""]


def test_equal_tools_and_systems_are_shared_only_if_the_scenario_assumes_it(tmp_path):
    """130 tokens of tools are 2 whole blocks, with 70 of system they are 3; 31 of system leave no block of their own."""
    sizes = {
        "one": (130, 70),
        "two": (130, 70),
        "other-system": (130, 90),
        "other-tools": (140, 70),
        "no-system": (130, 31),
    }
    sessions = []
    for number, (name, (tools, system)) in enumerate(sizes.items()):
        _, compact = in_both_forms()
        compact |= {"session": name, "tool_tokens": tools, "system_tokens": system}
        compact["calls"] = json.loads(json.dumps(compact["calls"]).replace("[1, 4]", f"[{100 * number + 1}, 4]"))
        sessions.append(compact)
    path = written(tmp_path / "s.jsonl.gz", sessions)
    alone = build(spec(path, pipelines=5), POOL)
    assert all(not ideal_cached_by_call(alone)[plan.pipeline_id, 0] for plan in alone.pipelines)
    shared = build(spec(path, pipelines=5, share_system=True), POOL)
    starts = {plan.pipeline_id.split("/")[1]: expanded(plan.calls[0].prompt) for plan in shared.pipelines}

    def common(one: str, other: str) -> int:
        pairs = zip(starts[one], starts[other], strict=True)
        return next(i for i, (left, right) in enumerate(pairs) if left != right)

    assert common("one", "two") == 3
    assert common("one", "other-system") == common("one", "no-system") == 2
    assert common("one", "other-tools") == 0
    assert any("ASSUMED" in note for note in shared.notes)
    for before, after in zip(alone.pipelines, shared.pipelines, strict=True):
        assert [call.prompt.total_tokens for call in before.calls] == [call.prompt.total_tokens for call in after.calls]
        own = [{expanded(call.prompt)[-1] for call in plan.calls} for plan in (before, after)]
        assert len(own[0]) == len(own[1]), "what a session shares within itself is not changed"
    within = [sum(ideal_cached_by_call(each).values()) for each in (alone, shared)]
    assert within[1] - within[0] == 64 * (3 + 2 + 2)


def test_ids_that_are_global_are_shared_as_recorded(tmp_path):
    original, _ = in_both_forms()
    for name in ("one", "two"):
        (tmp_path / f"{name}.json").write_text(json.dumps(original | {"id": name, "hash_id_scope": "global"}))
    workload = build(spec(tmp_path, pipelines=4), POOL)
    firsts = [ideal_cached_by_call(workload)[plan.pipeline_id, 0] for plan in workload.pipelines]
    assert firsts == [0, 4 * 64, 0, 4 * 64], "the repetition is fresh, and shares within itself"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", "{\n", "line 1 is not JSON"),
        ("a.json", '{"requests": [], "block_size": 64}', "lacks 'id'"),
        ("a.json", '{"requests": [{"t": 0}], "id": "x", "block_size": 64}', "lacks"),
        ("a.json", '{"requests": [], "id": "x", "block_size": 64}', "has no calls"),
    ],
)
def test_damaged_originals_name_file_and_reason(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(ScenarioError, match=words) as error:
        build(spec(tmp_path / name), POOL)
    assert name in str(error.value)


def test_folders_and_patterns_that_hold_nothing(tmp_path):
    for path, words in ((tmp_path, "without .json"), (tmp_path / "*.json", "matches no file")):
        with pytest.raises(ScenarioError, match=words):
            build(spec(path), POOL)


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

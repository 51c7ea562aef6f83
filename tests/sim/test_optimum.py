"""Bounds worked out by hand, against naive and exhaustive solutions, and in the report."""

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amf.core.cost import decode_s, iteration_s
from amf.core.types import CallKind, Worker
from amf.sim.optimum import Bounds, belady_hit_ratio, bounds_of
from amf.sim.optimum_belady import belady_hit_blocks
from amf.sim.optimum_load import closed_loop_flow_s, closed_loop_p99_s, earliest_p99_s, spared, srpt_flow_s
from amf.sim.plan import CallPlan, PipelinePlan, PromptPlan, Workload
from amf.sim.report import (
    CallRecord,
    PipelineRecord,
    ReportContext,
    RunRecords,
    served_order,
    summarise,
)
from amf.sim.workload import SHARED_BLOCKS
from kit import PROFILE

SIZE = 16
OWN = SHARED_BLOCKS  # block ids from here on belong to the prompt's own namespace


def prompt(name: str, *runs: tuple[int, int], tail: int = 1) -> PromptPlan:
    return PromptPlan(namespace=f"g/{name}", block_tokens=SIZE, runs=runs, tail_tokens=tail)


def call(index: int, text: PromptPlan, output: int = 1, parents: tuple[int, ...] = (), **changes) -> CallPlan:
    return CallPlan(index=index, hop="h", pool="m", prompt=text, output_tokens=output, parents=parents, **changes)


def pipeline(name: str, *calls: CallPlan, arrival_s: float | None = None) -> PipelinePlan:
    return PipelinePlan(pipeline_id=f"g/{name}", graph="g", calls=calls, arrival_s=arrival_s)


def fleet(workers: int = 2, kv_tokens: int = 100_000) -> list[Worker]:
    return [Worker(name=f"m-{i}", pool="m", profile=PROFILE, kv_tokens=kv_tokens) for i in range(workers)]


def alone_s(new: int, cached: int, output: int = 1) -> float:
    return iteration_s(PROFILE, [(new, cached)], 0, 0) + decode_s(PROFILE, output - 1, 1, new + cached + 1)


# --- critical path ----------------------------------------------------------------------------------------------------


def critical(*pipelines: PipelinePlan, workers: list[Worker] | None = None) -> list[float]:
    bounds = bounds_of(Workload(name="w", pipelines=pipelines), workers or fleet())
    return [bounds.critical_path_s[each.pipeline_id] for each in pipelines]


def test_a_chain_pays_for_what_is_new_and_for_its_gaps():
    first, second = prompt("a", (OWN, 100)), prompt("a", (OWN, 130), tail=9)
    chain = pipeline("a", call(0, first, 50), call(1, second, 20, (0,), gap_s=7.0))
    expected = alone_s(1601, 0, 50) + 7.0 + alone_s(30 * SIZE + 9, 1600, 20)
    assert critical(chain) == [pytest.approx(expected)]


def test_a_call_cannot_have_what_only_its_descendants_compute():
    small, large = prompt("a", (OWN, 50)), prompt("a", (OWN, 200))
    assert critical(pipeline("a", call(0, large), call(1, small, 1, (0,)))) == [
        pytest.approx(alone_s(200 * SIZE + 1, 0) + alone_s(1, 50 * SIZE))
    ]
    assert critical(pipeline("a", call(0, small), call(1, large, 1, (0,)))) == [
        pytest.approx(alone_s(50 * SIZE + 1, 0) + alone_s(150 * SIZE + 1, 50 * SIZE))
    ]


def test_siblings_and_other_pipelines_may_have_left_a_prefix():
    twins = pipeline("a", call(0, prompt("a", (OWN, 80))), call(1, prompt("a", (OWN, 80))))
    assert critical(twins) == [pytest.approx(alone_s(1, 80 * SIZE))]
    one, other = (pipeline(name, call(0, prompt(name, (0, 60), (OWN, 20)))) for name in "ab")
    assert critical(one, other) == [pytest.approx(alone_s(20 * SIZE + 1, 60 * SIZE))] * 2
    assert critical(one) == [pytest.approx(alone_s(80 * SIZE + 1, 0))]


def test_a_whole_prompt_in_cache_still_computes_its_last_block():
    twins = pipeline("a", *(call(i, prompt("a", (OWN, 80), tail=0)) for i in range(2)))
    assert critical(twins) == [pytest.approx(alone_s(SIZE, 79 * SIZE))]


def test_encoders_share_nothing_and_parallel_branches_count_once():
    text = prompt("a", (OWN, 10))
    embed = pipeline("a", *(call(i, text, 0, kind=CallKind.EMBED) for i in range(3)))
    assert critical(embed) == [pytest.approx(alone_s(161, 0, 1))]


def test_the_best_worker_of_a_pool_counts():
    fast = replace(fleet(1)[0], profile=replace(PROFILE, flops_per_s=2 * PROFILE.flops_per_s))
    plan = pipeline("a", call(0, prompt("a", (OWN, 1_000))))
    assert critical(plan, workers=[*fleet(1), fast]) == critical(plan, workers=[fast]) < critical(plan)


def test_a_pool_without_workers_is_an_error():
    with pytest.raises(KeyError):
        critical(pipeline("a", replace(call(0, prompt("a", (OWN, 1))), pool="other")))


# --- cache ------------------------------------------------------------------------------------------------------------

CHOICES = [(fork, branch, deep) for fork in range(4) for branch in range(3) for deep in (1, 2, 4)]


def chosen(choice: tuple[int, int, int]) -> PromptPlan:
    """`fork` blocks of one text, then a branch of it `deep` blocks long."""
    fork, branch, deep = choice
    runs = ((OWN, fork), (OWN + 100 * (branch + 1) + 10 * fork, deep))
    return prompt("a", *(run for run in runs if run[1]))


def blocks_of(text: PromptPlan) -> list[tuple[int, ...]]:
    ids = [first + i for first, count in text.runs for i in range(count)]
    return [tuple(ids[: depth + 1]) for depth in range(len(ids))]


def naive_hits(prompts: list[PromptPlan], capacity: int, farthest: bool) -> list[int]:
    """One object a block: evict the one used again last (deepest first), or the one least recently used."""
    asked, resident, used, hits = [blocks_of(each) for each in prompts], set(), {}, []
    for now, path in enumerate(asked):
        hits.append(next((depth for depth, block in enumerate(path) if block not in resident), len(path)))
        resident |= set(path)
        used |= dict.fromkeys(path, now)

        ahead = {block: _next_use(asked, block, now) if farthest else -used[block] for block in resident}
        idle = sorted(resident - set(path), key=lambda block, ahead=ahead: (ahead[block], len(block)))
        while len(resident) > capacity:
            resident.remove(idle.pop())
    return hits


def _next_use(asked: list[list[tuple[int, ...]]], block: tuple[int, ...], now: int) -> int:
    return next((then for then in range(now + 1, len(asked)) if block in asked[then]), len(asked))


def best_hits(prompts: list[PromptPlan], capacity: int) -> int:
    """Every way to choose what stays, from the last request back."""
    asked = [frozenset(blocks_of(each)) for each in prompts]
    states: dict[frozenset, int] = {frozenset(): 0}
    for path in asked:
        after: dict[frozenset, int] = {}
        for resident, hits in states.items():
            rest, room = sorted(resident - path), capacity - len(path)
            for kept in combinations(rest, min(room, len(rest))):
                state = path.union(kept)
                after[state] = max(after.get(state, 0), hits + len(resident & path))
        states = after
    return max(states.values())


@given(st.lists(st.sampled_from(CHOICES), max_size=30), st.integers(8, 20))
@settings(max_examples=150, deadline=None)
def test_belady_by_runs_is_belady_by_blocks_and_no_worse_than_lru(choices: list[tuple[int, int, int]], capacity: int):
    prompts = [chosen(choice) for choice in choices]
    hits = belady_hit_blocks(prompts, capacity)
    assert sum(hits) == sum(naive_hits(prompts, capacity, farthest=True))
    assert sum(hits) >= sum(naive_hits(prompts, capacity, farthest=False))


@given(st.lists(st.sampled_from(CHOICES), max_size=7), st.integers(7, 10))
@settings(max_examples=60, deadline=None)
def test_no_choice_of_what_to_keep_beats_belady(choices: list[tuple[int, int, int]], capacity: int):
    prompts = [chosen(choice) for choice in choices]
    assert sum(belady_hit_blocks(prompts, capacity)) == best_hits(prompts, capacity)


def test_a_cache_keeps_the_session_that_returns_first():
    a, b, c = (prompt(name, (OWN, 4)) for name in "abc")
    assert belady_hit_blocks([a, b, c, a, b, c], 8) == [0, 0, 0, 4, 0, 4]
    assert belady_hit_blocks([a, b, a, b], 8) == [0, 0, 4, 4]
    assert belady_hit_blocks([a, b, a, b], 6) == [0, 0, 2, 2]


def test_hit_ratio_is_by_pool_and_over_all_prompt_tokens():
    long = prompt("a", (OWN, 10), tail=0)
    plan = pipeline("a", call(0, long), call(1, long, 1, (0,)), call(2, long, 0, kind=CallKind.RERANK))
    workload = Workload(name="w", pipelines=(plan,))
    order = [("g/a", 0), ("g/a", 1), ("g/a", 2)]
    assert belady_hit_ratio(workload, fleet(), order) == pytest.approx(1 / 3)
    assert belady_hit_ratio(workload, fleet(), []) is None
    with pytest.raises(ValueError, match="10 blocks in a cache of 6"):
        belady_hit_ratio(workload, fleet(2, kv_tokens=3 * SIZE), order)


# --- load -------------------------------------------------------------------------------------------------------------


def test_shortest_remaining_work_first_by_hand():
    assert srpt_flow_s([0, 1, 2], [5, 2, 4]) == (3 - 1) + (7 - 0) + (11 - 2)
    assert srpt_flow_s([0, 10], [1, 1]) == 2
    assert srpt_flow_s([], []) == 0


def test_a_closed_loop_by_hand():
    assert closed_loop_flow_s([3, 1, 2], 2) == 3 + 6
    assert closed_loop_flow_s([3, 1, 2], 8) == 1 + 3 + 6
    assert spared(100) == 1 and spared(1) == 0 and spared(400) == 4 and spared(0) == 0
    assert closed_loop_p99_s([1.0] * 100, 5) == pytest.approx(4 * 99 / 103)
    assert closed_loop_p99_s([1.0] * 100, 1) == 0.0


JOBS = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 6), st.integers(1, 8)), min_size=1, max_size=7)


def ends_in_time(jobs: list[tuple[int, int]], within: float) -> bool:
    end = 0.0
    for release, work in sorted(jobs):
        end = max(end, release) + work
        if end > release + within + 1e-6:
            return False
    return True


@given(JOBS)
@settings(max_examples=200, deadline=None)
def test_the_earliest_percentile_is_the_exhaustive_one(jobs: list[tuple[int, int, int]]):
    found = earliest_p99_s(*(list(column) for column in zip(*jobs, strict=True)))
    within = found * (1 + 2e-6) + 1e-9
    above = spared(len(jobs))

    def feasible(limit: float) -> bool:
        return any(
            all(alone <= limit + 1e-6 for _, _, alone in kept) and ends_in_time([(r, w) for r, w, _ in kept], limit)
            for kept in combinations(jobs, len(jobs) - above)
        )

    assert feasible(within), "the bound is too high: a schedule exists below it"
    assert found < 1e-3 or not feasible(found - 0.01), "the bound is not tight"


def test_work_binds_when_many_arrive_at_once():
    many = tuple(pipeline(str(i), call(0, prompt(str(i), (OWN, 1_000)))) for i in range(40))
    bounds = bounds_of(Workload(name="w", pipelines=many), fleet())
    work_s = alone_s(16_001, 0) - PROFILE.iteration_overhead_s
    assert bounds.srpt_mean_s == pytest.approx(work_s / 2 * 41 / 2, rel=1e-6)
    assert bounds.edf_p99_s == pytest.approx(work_s / 2 * 39, rel=1e-4)
    apart = tuple(replace(each, arrival_s=100.0 * i) for i, each in enumerate(many))
    idle = bounds_of(Workload(name="w", pipelines=apart), fleet())
    assert idle.srpt_mean_s == pytest.approx(alone_s(16_001, 0)) and idle.edf_p99_s == pytest.approx(idle.srpt_mean_s)


def test_places_and_arrivals_together_leave_only_the_critical_path():
    many = tuple(pipeline(str(i), call(0, prompt(str(i), (OWN, 1_000))), arrival_s=0.0) for i in range(40))
    bounds = bounds_of(Workload(name="w", pipelines=many, concurrency=20), fleet())
    assert (bounds.srpt_mean_s, bounds.edf_p99_s) == pytest.approx((alone_s(16_001, 0),) * 2)
    closed = tuple(replace(each, arrival_s=None) for each in many)
    assert bounds_of(Workload(name="w", pipelines=closed, concurrency=20), fleet()).srpt_mean_s > bounds.srpt_mean_s


def test_nothing_to_do_takes_no_time():
    empty = bounds_of(Workload(name="w", pipelines=()), fleet())
    assert empty == Bounds(critical_path_s={}, srpt_mean_s=0.0, edf_p99_s=0.0)


# --- report -----------------------------------------------------------------------------------------------------------


def record(name: str, seconds: float, status="completed") -> PipelineRecord:
    return PipelineRecord(pipeline=name, graph="g", start_s=1.0, end_s=1.0 + seconds, status=status, standalone_s=3.0)


BOUNDS = Bounds(critical_path_s={"a": 2.0, "b": 4.0}, srpt_mean_s=3.5, edf_p99_s=5.0, belady_hit_ratio=0.75)


def reported(*pipelines: PipelineRecord, bounds: Bounds | None = BOUNDS):
    context = ReportContext(policy="p", workload="w", seed=1, duration_s=10.0, bounds=bounds)
    return summarise(RunRecords(pipelines=pipelines, calls=[]), context)


def test_the_report_stretches_over_the_critical_path():
    made = reported(record("a", 4.0), record("b", 4.0))
    assert made["stretch"]["mean"] == 1.5 and made["bound"]["critical_path_s"]["mean"] == 3.0
    assert made["bound"]["jct_s"]["mean"] == 3.0
    assert (made["bound"]["srpt_mean_s"], made["bound"]["edf_p99_s"]) == (3.5, 5.0)
    assert made["bound"]["belady_hit_ratio"] == 0.75
    without = reported(record("a", 4.0), record("b", 4.0), bounds=None)
    assert without["stretch"]["mean"] == pytest.approx(4 / 3) and without["bound"]["srpt_mean_s"] is None
    assert without["bound"]["critical_path_s"]["mean"] is None


def test_load_bounds_are_null_unless_all_pipelines_completed():
    for some in (reported(record("a", 4.0), record("b", 0.0, "refused")), reported(record("a", 4.0))):
        assert some["bound"]["srpt_mean_s"] is some["bound"]["edf_p99_s"] is None
        assert some["bound"]["critical_path_s"]["mean"] == 2.0 and some["stretch"]["mean"] == 2.0


def test_served_order_is_that_of_first_tokens():
    def answered(name: str, start_s: float, ttft_s: float | None, **changes) -> CallRecord:
        return CallRecord(
            pipeline=name, index=0, hop="h", pool="m", start_s=start_s, end_s=9.0, ttft_s=ttft_s, **changes
        )

    calls = [
        answered("a", 1.0, 5.0),
        answered("b", 2.0, 3.0),
        answered("c", 0.0, 1.0, status="failed"),
        answered("d", 3.0, None),
    ]
    assert served_order(RunRecords(pipelines=[], calls=calls)) == [("b", 0), ("a", 0), ("d", 0)]

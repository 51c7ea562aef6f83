"""What a client does with attempts and guesses, one after another and all at once: who runs when, who is cancelled, what is
wasted. Times are held against each other, so that they do not depend on what a call costs."""

from dataclasses import replace
from pathlib import Path

import pytest

from amf.commands.bench import _workload
from amf.core.decisions import Because, Decision, Refuse
from amf.core.events import CallArrived, Event
from amf.core.graph import GroupKind
from amf.core.types import Worker
from amf.sim.in_turn import in_turn, workload_in_turn
from amf.sim.optimum import bounds_of
from amf.sim.plan import AttemptPlan, Workload
from amf.sim.report import ReportContext, RunRecords, compare, spent_tokens, summarise
from amf.sim.reuse import note_reuse
from amf.sim.scenario import Scenario, ScenarioError, scenario_from_dict
from amf.sim.study import Case
from amf.sim.study import play as play_case
from amf.sim.workload import GRAPHS, build
from kit import PROFILE
from speculating import WAYS, Heard, Sketch, by_hop, play

FIRST, BEST, QUORUM = GroupKind.FIRST_SUCCESS, GroupKind.BEST_OF, GroupKind.QUORUM


def attempts(
    kind: GroupKind, *outcomes: bool, outputs: tuple[int, ...] = (), k: int = 1, test_s: float = 2.0
) -> Sketch:
    """plan -> attempts, each of one call, tested for 2, 4, ... s -> finish."""
    sketch = Sketch()
    plan = sketch.call("plan")
    made = [
        sketch.call(f"try-{number}", plan, output=output)
        for number, output in enumerate(outputs or (20,) * len(outcomes), start=1)
    ]
    tried = [
        AttemptPlan(calls=(call,), succeeds=good, test_s=test_s * number, probability=0.5, score=number / 10)
        for number, (call, good) in enumerate(zip(made, outcomes, strict=True), start=1)
    ]
    sketch.group(kind, tried, k=k)
    sketch.call("finish", *made)
    return sketch


def ended(records: RunRecords) -> dict[str, str]:
    return {hop: call.status for hop, call in by_hop(records).items()}


# --- one after another --------------------------------------------------------------------------------------------------


def test_in_turn_each_attempt_waits_for_the_test_of_the_one_before():
    records, fabric = play("off", [attempts(FIRST, False, True, True).plan()])
    hops = by_hop(records)
    assert [*hops] == ["plan", "try-1", "try-2", "finish"], "the third is not needed"
    assert hops["try-2"].start_s == pytest.approx(hops["try-1"].end_s + 2.0)
    assert hops["finish"].start_s == pytest.approx(hops["try-2"].end_s + 4.0)
    assert records.pipelines[0].unused == {1} and fabric.decided == []
    assert fabric.calls["g/0/3"].parents == ("try-2",) and fabric.calls["g/0/3"].final


def test_in_turn_a_quorum_goes_on_until_enough_have_succeeded():
    plan = in_turn(attempts(QUORUM, True, False, True, True, k=2).plan())
    assert [call.hop for call in plan.calls] == ["plan", "try-1", "try-2", "try-3", "finish"]
    assert [call.parents for call in plan.calls] == [(), (0,), (1,), (2,), (3,)]
    assert [call.gap_s for call in plan.calls] == [0.0, 0.0, 2.0, 4.0, 6.0] and plan.unused == (2,)


@pytest.mark.parametrize(("kind", "unused"), [(FIRST, (1, 2, 3)), (BEST, (1, 2))])
def test_in_turn_the_best_is_taken_only_where_there_is_a_judge(kind: GroupKind, unused: tuple[int, ...]):
    plan = in_turn(attempts(kind, False, False, False).plan())
    assert len(plan.calls) == 5 and plan.unused == unused


def test_in_turn_nothing_is_guessed():
    sketch = Sketch()
    one = sketch.call("one")
    two = sketch.call("two", one)
    wrong = sketch.call("two", one)
    sketch.call("three", two)
    sketch.guess(two, one, wrong=(wrong,))
    plan = in_turn(sketch.plan())
    assert [(call.hop, call.parents) for call in plan.calls] == [("one", ()), ("two", (0,)), ("three", (1,))]
    assert plan.unused == () and plan.speculates and not plan.guesses


def test_a_workload_without_groups_is_what_it_was():
    plain = build(speculating("chain-3").workload, GRAPHS["chain-3"].fleet)
    assert workload_in_turn(plain) is plain and in_turn(plain.pipelines[0]) is plain.pipelines[0]


def speculating(name: str, pipelines: int = 6, **run: str) -> Scenario:
    workload = {"kind": "graph", "graph": name, "pipelines": pipelines, "load": 0.5, "scale_tokens": 0.2}
    return scenario_from_dict({"workload": workload, "run": run}, "test.toml")


# --- all at once --------------------------------------------------------------------------------------------------------


def test_the_first_success_is_committed_and_the_others_are_cancelled():
    records, fabric = play("managed", [attempts(FIRST, False, True, True, outputs=(20, 20, 2_000)).plan()])
    hops = by_hop(records)
    assert hops["try-1"].start_s == hops["try-2"].start_s == hops["try-3"].start_s == hops["plan"].end_s
    committed_s = hops["try-2"].end_s + 4.0
    assert hops["finish"].start_s == hops["try-3"].end_s == pytest.approx(committed_s)
    assert ended(records) == {"plan": "ok", "try-1": "ok", "try-2": "ok", "try-3": "cancelled", "finish": "ok"}
    assert [(group, yes, no) for _, group, yes, no in fabric.decided] == [
        ("try", (), ("try-1",)),
        ("try", ("try-2",), ()),
    ]
    first, last = fabric.calls["g/0/1"], fabric.calls["g/0/4"]
    assert first.branch == "try/try-1" and first.branch_hint is not None
    assert (first.branch_hint.kind, first.branch_hint.k, first.branch_hint.probability) == ("first_success", 1, 0.5)
    assert last.branch == "" and last.parents == ("try-2",) and last.final
    assert records.pipelines[0].unused == {1, 3}


def test_unmanaged_losers_run_to_their_end():
    plan = attempts(FIRST, False, True, True, outputs=(20, 20, 400), test_s=0.1).plan()
    other = replace(attempts(FIRST, True, outputs=(900,)).plan(), pipeline_id="g/1")
    records, fabric = play("unmanaged", [plan, other])
    mine = {call.hop: call for call in records.calls if call.pipeline == "g/0"}
    assert mine["try-3"].status == "ok" and mine["try-3"].end_s > mine["finish"].end_s
    assert mine["finish"].start_s == pytest.approx(mine["try-2"].end_s + 0.2)
    assert all(call.branch == "" and call.branch_hint is None for call in fabric.calls.values())
    assert fabric.decided == [] and records.pipelines[0].unused == {1, 3}
    assert fabric.totals()["live_calls"] == fabric.totals()["live_pipelines"] == 0, "a client closes its run"


def test_what_still_runs_when_all_is_over_is_counted():
    records, fabric = play("unmanaged", [attempts(FIRST, True, True, outputs=(20, 3_000)).plan()])
    late = by_hop(records)["try-2"]
    assert late.status == "cancelled" and late.end_s == by_hop(records)["finish"].end_s
    assert 43 < late.spent_tokens < 45 * 16 + 3 + 3_000
    assert fabric.totals()["live_calls"] == 0


def test_one_judge_takes_attempts_as_they_finish():
    records, _ = play("managed", [attempts(BEST, True, False, True, outputs=(600, 20, 2_000), test_s=30.0).plan()])
    hops = by_hop(records)
    assert hops["try-2"].end_s < hops["try-1"].end_s < hops["try-2"].end_s + 60.0
    judged_s = hops["try-2"].end_s + 60.0 + 30.0  # the first waits until the second is judged
    assert hops["finish"].start_s == pytest.approx(judged_s)
    assert records.pipelines[0].unused == {2, 3}


def test_where_none_is_good_enough_the_best_is_taken():
    records, fabric = play("managed", [attempts(BEST, False, False, False).plan()])
    assert {*ended(records).values()} == {"ok"} and records.pipelines[0].unused == {1, 2}
    decided = [(yes, no) for _, _, yes, no in fabric.decided]
    assert decided == [((), ("try-1",)), ((), ("try-2",)), (("try-3",), ())]
    assert fabric.calls["g/0/4"].parents == ("try-3",)


def test_where_none_succeeds_the_pipeline_goes_on():
    records, fabric = play("managed", [attempts(FIRST, False, False).plan()])
    hops = by_hop(records)
    assert records.pipelines[0].status == "completed" and records.pipelines[0].unused == {1, 2}
    assert hops["finish"].start_s == pytest.approx(max(hops["try-1"].end_s + 2.0, hops["try-2"].end_s + 4.0))
    assert fabric.calls["g/0/3"].parents == ("try-1", "try-2")


def test_a_quorum_commits_one_by_one_and_then_cancels():
    plan = attempts(QUORUM, True, False, True, True, outputs=(20, 20, 20, 3_000), k=2).plan()
    records, fabric = play("managed", [plan])
    assert [yes for _, _, yes, _ in fabric.decided if yes] == [("try-1",), ("try-3",)]
    assert ended(records)["try-4"] == "cancelled" and records.pipelines[0].unused == {2, 4}
    assert fabric.calls["g/0/5"].parents == ("try-1", "try-3")


@pytest.mark.parametrize(("way", "status"), [("managed", None), ("unmanaged", "ok")])
def test_of_a_lost_chain_only_an_unmanaged_client_sends_more(way: str, status: str | None):
    sketch = Sketch()
    short, long = sketch.call("short"), sketch.call("long", output=1_500)
    more = sketch.call("more", long, output=5)
    sketch.group(FIRST, [AttemptPlan(calls=(short,), succeeds=True), AttemptPlan(calls=(long, more), succeeds=True)])
    sketch.call("finish", short, more, output=4_000)
    records, _ = play(way, [sketch.plan()])
    assert ended(records).get("more") == status
    assert ended(records)["long"] == ("cancelled" if way == "managed" else "ok")
    assert records.pipelines[0].unused == {long, more}


# --- guesses --------------------------------------------------------------------------------------------------------------


def guessed(right: bool, output: int = 2_000) -> Sketch:
    """one -> two -> three -> four; three is guessed while two runs."""
    sketch = Sketch()
    one = sketch.call("one")
    two = sketch.call("two", one, output=300)
    three = sketch.call("three", two, output=20)
    wrong = () if right else (sketch.call("three", two, output=output),)
    sketch.call("four", three)
    sketch.guess(three, two, after=(one,), wrong=wrong)
    return sketch


@pytest.mark.parametrize("way", ["managed", "unmanaged"])
def test_a_right_guess_is_sent_early_and_goes_on_only_when_it_is_known_to_be_right(way: str):
    records, fabric = play(way, [guessed(True).plan()])
    hops = by_hop(records)
    assert hops["three"].start_s == hops["two"].start_s == hops["one"].end_s
    assert hops["three"].end_s < hops["two"].end_s == hops["four"].start_s
    assert len(records.calls) == 4 and records.pipelines[0].unused == frozenset()
    managed = way == "managed"
    assert [each[1:] for each in fabric.decided] == ([("next-2", ("three",), ())] if managed else [])
    early = fabric.calls["g/0/2"]
    assert early.branch == ("next-2/three" if managed else "") and not early.final


@pytest.mark.parametrize(("way", "status"), [("managed", "cancelled"), ("unmanaged", "ok")])
def test_a_wrong_guess_is_thrown_away(way: str, status: str):
    plan = guessed(False, output=320).plan()
    records, fabric = play(way, [plan])
    wrong, right = (call for call in sorted(records.calls, key=lambda call: call.start_s) if call.hop == "three")
    two = by_hop(records)["two"]
    assert wrong.start_s == two.start_s and wrong.status == status and wrong.index == 3
    assert right.start_s == two.end_s and right.status == "ok" and right.index == 2
    assert records.pipelines[0].unused == {3}
    assert [each[1:] for each in fabric.decided] == ([("next-2", (), ("three",))] if way == "managed" else [])
    assert fabric.calls["g/0/2"].branch == "" and fabric.calls["g/0/4"].final


def test_no_guess_is_made_on_top_of_a_guess():
    sketch = Sketch()
    one = sketch.call("one", output=400)
    two = sketch.call("two", one, output=20)
    three = sketch.call("three", two, output=20)
    sketch.guess(two, one)
    sketch.guess(three, two, after=(one,))
    records, _ = play("managed", [sketch.plan()])
    hops = by_hop(records)
    assert hops["two"].end_s < hops["one"].end_s == hops["three"].start_s


# --- what the fabric ends -------------------------------------------------------------------------------------------------


class Refusing(Heard):
    """Ends the first calls of these branches, once each."""

    def __init__(self, *branches: str) -> None:
        super().__init__()
        self.branches = list(branches)

    def handle(self, event: Event) -> list[Decision]:
        if isinstance(event, CallArrived) and event.call.branch in self.branches:
            self.branches.remove(event.call.branch)
            because = Because(reason="too dear")
            return [Refuse(call_id=event.call.call_id, code="branch_cancelled", message="", because=because)]
        return super().handle(event)


def test_what_the_fabric_ended_is_tried_again_alone_if_nothing_else_succeeds():
    fabric = Refusing("try/try-1", "try/try-3")
    records, _ = play("managed", [attempts(FIRST, True, False, True).plan()], fabric)
    tries = [(call.hop, call.status) for call in records.calls if call.hop.startswith("try")]
    assert tries == [("try-1", "cancelled"), ("try-3", "cancelled"), ("try-2", "ok"), ("try-1", "ok")]
    assert records.pipelines[0].status == "completed" and records.pipelines[0].unused == {2, 3}
    assert fabric.calls["g/0/1"].branch == "", "it is needed now"
    assert figures(records)["wasted_speculative_tokens"] == spent_tokens(by_hop(records)["try-2"])


def test_what_the_fabric_ended_is_not_missed_if_another_succeeds():
    records, _ = play("managed", [attempts(FIRST, True, True).plan()], Refusing("try/try-1"))
    assert ended(records)["try-1"] == "cancelled" and len(records.calls) == 4
    assert records.pipelines[0].status == "completed"


def test_a_guess_that_the_fabric_ended_is_sent_in_its_time():
    records, _ = play("managed", [guessed(True).plan()], Refusing("next-2/three"))
    assert [(call.hop, call.status) for call in records.calls] == [
        ("one", "ok"), ("three", "cancelled"), ("two", "ok"), ("three", "ok"), ("four", "ok"),
    ]  # fmt: skip


# --- figures --------------------------------------------------------------------------------------------------------------


def figures(records: RunRecords) -> dict:
    width = {"m": 2.0}
    return summarise(records, ReportContext(policy="p", workload="w", seed=1, duration_s=9.0, kv_bytes_per_token=width))


@pytest.mark.parametrize("way", WAYS)
def test_wasted_is_what_nobody_used(way: str):
    plan = attempts(FIRST, False, True, True, outputs=(20, 20, 2_000)).plan()
    plain = Sketch("g/1")
    plain.call("alone")
    records, _ = play(way, [plan, plain.plan()])
    made = figures(records)
    wasted = sum(spent_tokens(call) for call in records.calls if call.hop in ("try-1", "try-3"))
    assert made["wasted_speculative_tokens"] == wasted > 0 and made["bytes"]["churn"] == 2.0 * wasted
    needless = sum(spent_tokens(call) for call in records.calls if call.hop == "try-3")  # the first fails in turn, too
    assert made["speculation"]["needless_tokens"] == needless
    every = sum(spent_tokens(call) for call in records.calls)
    assert made["speculation"]["wasted_share"] == pytest.approx(wasted / every)
    own, other = records.pipelines
    assert made["speculation"]["own"]["mean"] == pytest.approx(own.end_s - own.start_s)
    assert made["speculation"]["others"]["p50"] == pytest.approx(other.end_s - other.start_s)
    kept = [call for call in records.calls if call.hop not in ("try-1", "try-3")]
    ratio = sum(call.cached_tokens or 0 for call in kept) / sum(call.prompt_tokens for call in kept)
    assert made["speculation"]["hit_ratio"] == pytest.approx(ratio)
    assert compare(made, made)["speculation.own.p50"] == 1.0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("outputs", "cancelled"), [((20, 60), False), ((900, 20), True)])
def test_a_context_that_a_loser_left_to_the_winner_is_not_wasted(way: str, outputs: tuple[int, int], cancelled: bool):
    """640 tokens that all prompts share; the first attempt computes them, the second finds them and is the one that is used."""
    sketch = Sketch()
    first, second = (sketch.call(f"try-{i}", output=output) for i, output in enumerate(outputs, start=1))
    tried = [AttemptPlan(calls=(first,), succeeds=cancelled), AttemptPlan(calls=(second,), succeeds=True)]
    sketch.group(FIRST, tried)
    sketch.call("finish", first, second, output=2_000)
    plan = sketch.plan()
    records, _ = play(way, [plan], workers=1)
    hops = by_hop(records)
    if way == "off":
        plan = in_turn(plan)
    before = figures(records)["wasted_speculative_tokens"]
    note_reuse(Workload(name="w", pipelines=(plan,)), records)
    after = figures(records)["wasted_speculative_tokens"]
    if way == "off" and cancelled:  # the first succeeds, and nothing else is tried
        assert [*hops] == ["try-1", "finish"] and before == after == 0
        return
    assert hops["try-1"].status == ("cancelled" if cancelled and way == "managed" else "ok")
    assert hops["try-2"].cached_tokens == 640 and hops["try-1"].cached_tokens == 0
    assert before - after == hops["try-1"].reused_tokens == 640
    assert hops["try-2"].reused_tokens == hops["finish"].reused_tokens == 0


def test_a_managed_client_wastes_less():
    plan = attempts(FIRST, True, True, True, outputs=(20, 1_000, 2_000)).plan()
    plain = Sketch("g/1")
    plain.call("alone", output=4_000)
    off, unmanaged, managed = (figures(play(way, [plan, plain.plan()])[0])["wasted_speculative_tokens"] for way in WAYS)
    assert off == 0 < managed < unmanaged


def test_a_bound_is_stated_only_of_what_does_not_speculate():
    plan, plain = attempts(FIRST, True, True).plan(), Sketch("g/1")
    plain.call("alone")
    fleet = [Worker(name="m-0", pool="m", profile=PROFILE, kv_tokens=100_000)]
    from_both = bounds_of(Workload(name="w", pipelines=(plan, plain.plan())), fleet)
    assert [*from_both.critical_path_s] == ["g/1"] and from_both.srpt_mean_s is from_both.edf_p99_s is None


# --- cases and scenarios --------------------------------------------------------------------------------------------------


def unwatched(arrived: int, total: int) -> None:
    pass


@pytest.mark.parametrize("name", ["first-success-3", "best-of-3", "predicted-60", "tree-early"])
def test_every_way_meets_the_same_luck(name: str):
    outcomes = {
        way: play_case(speculating(name), Case(policy="fabric", seed=3, speculation=way), unwatched) for way in WAYS
    }
    off, managed = outcomes["off"].workload, outcomes["managed"].workload
    assert outcomes["unmanaged"].workload == managed
    for one, other in zip(off.pipelines, managed.pipelines, strict=True):
        assert (one.arrival_s, one.slo_s, one.standalone_s) == (other.arrival_s, other.slo_s, other.standalone_s)
        drawn = {(call.hop, call.prompt, call.output_tokens) for call in other.calls}
        assert {(call.hop, call.prompt, call.output_tokens) for call in one.calls} <= drawn
        assert one.speculates and other.speculates and (other.groups or other.guesses)
    for way, outcome in outcomes.items():
        assert {each.status for each in outcome.records.pipelines} == {"completed"}, way
        assert outcome.report["speculation"]["own"]["mean"] and outcome.report["bound"]["belady_hit_ratio"] is None
        calls = [(call.pipeline, call.index) for call in outcome.records.calls]
        assert len(calls) == len(set(calls)) or way == "managed"
    assert outcomes["managed"].report["jct_s"]["mean"] < outcomes["off"].report["jct_s"]["mean"]


def test_the_scenario_says_the_way_and_the_case_may_say_another():
    by_file = play_case(speculating("best-of-3", speculation="off"), Case(policy="fabric", seed=3), unwatched)
    case = Case(policy="fabric", seed=3, speculation="off")
    by_case = play_case(speculating("best-of-3"), case, unwatched)
    assert by_file.report == by_case.report
    assert by_case.report != play_case(speculating("best-of-3"), replace(case, speculation=""), unwatched).report
    with pytest.raises(ScenarioError, match=r"speculation = 'manged' is unknown; did you mean 'managed'"):
        speculating("best-of-3", speculation="manged")


def test_bench_does_one_thing_after_the_other(tmp_path: Path):
    file = tmp_path / "s.toml"
    file.write_text('[workload]\nkind = "graph"\ngraph = "best-of-3"\npipelines = 4\n')
    workload, _ = _workload(file, None, None, None)
    assert all(plan.speculates and not plan.groups for plan in workload.pipelines)
    (graph,) = workload.graphs
    assert not graph.branch_groups and {edge.probability for edge in graph.parents("attempt-2")} == {0.6}


def test_the_clairvoyant_and_calibration_put_up_with_groups():
    case = Case(policy="fabric-clairvoyant", seed=3, calibrated=True)
    made = play_case(speculating("predicted-60"), case, unwatched).report
    assert made["completed"] == 6 and made["calibration"]["predictions"] == 0

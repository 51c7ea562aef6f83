"""What is learned of places in a call graph: quantiles, their evidence and source, the ways pipelines take; and kept."""

import json
from copy import deepcopy
from math import inf

import pytest

from amf.core.config import FabricConfig
from amf.core.fabric import Fabric
from amf.core.policy.bundles import policies_named
from amf.core.state.prediction import QUANTITIES, Source
from amf.core.state.profiles import Profiles
from amf.core.state.transitions import Trail, Transitions
from amf.core.types import Call
from kit import Room, prefix

CONFIG = FabricConfig(min_evidence=3, over_floor_s=5.0, over_quantile=0.95)
PLAN, CODE = ("g", "plan", "m"), ("g", "code", "m")


def call(number: int = 0, hop: str = "plan", pool: str = "m") -> Call:
    return Call(call_id=f"c{number}", run_id=f"r{number}", pool=pool, graph="g", hop=hop)


def about(approx: float) -> object:
    return pytest.approx(approx, rel=0.0201)


def test_a_prediction_comes_from_the_position_then_the_pool_then_what_is_declared_then_the_default():
    profiles = Profiles(CONFIG)
    assert profiles.predict("output_tokens", PLAN).value == 256
    assert profiles.predict("gap_s", PLAN).value == 10.0
    assert profiles.predict("service_s", PLAN).source is Source.DEFAULT
    declared = profiles.predict("service_s", PLAN, declared=4.0)
    assert (declared.value, declared.evidence, declared.source) == (4.0, 0.0, Source.DECLARED)
    assert declared.quantile(0.99) == 4.0, "nothing is known of its spread"
    for number in range(2):
        profiles.observe_call(call(number, hop="code"), 100, 1.0 + number)
    assert profiles.predict("service_s", PLAN, declared=4.0).source is Source.DECLARED, "two are not enough"
    profiles.observe_call(call(2, hop="code"), 100, 3.0)
    by_pool = profiles.predict("service_s", PLAN, declared=4.0)
    assert (by_pool.value, by_pool.evidence, by_pool.source) == (2.0, 3.0, Source.POOL)
    for number in range(3):
        profiles.observe_call(call(number), 100, 10.0 + number)
    own = profiles.predict("service_s", PLAN, declared=4.0)
    assert (own.value, own.evidence, own.source) == (11.0, 3.0, Source.POSITION)
    assert own.quantile(0.0) == about(10.0) and own.quantile(1.0) == about(12.0)
    assert profiles.predict("service_s", ("g", "", "m")).evidence == 6.0, "a hop without a name has no position"
    assert profiles.predict("service_s", ("g", "plan", "other")).value == 11.0


def test_nothing_is_no_evidence_whatever_is_configured():
    profiles = Profiles(FabricConfig(min_evidence=0))
    profiles.observe_end("g", Trail(), {"plan": 1}, ())
    profiles.observe_gap_after(PLAN, 1.0)
    assert profiles.branch_odds("g", "code", "plan", declared=0.5).value == 0.5
    assert profiles.predict("service_s", PLAN, declared=4.0).source is Source.DECLARED
    assert profiles.predict("gap_s", PLAN).source is Source.POOL


def test_positions_are_bounded_and_the_least_recently_used_goes():
    profiles = Profiles(FabricConfig(max_profiles=3, min_evidence=1))
    for hop in ("a", "b", "c", "a", "d"):
        profiles.observe_call(call(hop=hop), 10, 1.0)
    sources = {hop: profiles.predict("service_s", ("g", hop, "m")).source.value for hop in "abcd"}
    assert sources == {"a": "position", "b": "pool", "c": "position", "d": "position"}


def test_what_a_fabric_learns_of_a_conversation():
    room = Room(workers=("w1",), min_evidence=1)
    for run in ("r1", "r2", "r3"):
        first = prefix(("system", 1_024), (run, 1_024))
        second = prefix(("system", 1_024), (run, 1_024), ("answer and tool", 512))
        room.serve(f"{run}/1", run, first, graph="g", hop="plan")
        room.now_s += 7.0
        room.serve(f"{run}/2", run, second, graph="g", hop="code", parents=("plan",))
        if run != "r3":
            room.now_s += 3.0
            room.serve(f"{run}/3", run, second, graph="g", hop="code", parents=("code",))
        room.close(run)
    profiles = room.fabric.book.profiles
    assert profiles.predict("gap_s", PLAN).value == pytest.approx(7.0)
    assert profiles.predict("gap_s", CODE).quantile(1.0) == about(3.0)
    assert profiles.predict("growth_tokens", PLAN).value == 2_048, "its pipeline had nothing there"
    growth = profiles.predict("growth_tokens", CODE)
    assert growth.quantile(1.0) == about(512 - 100), "the answer of 100 tokens was there as well"
    assert growth.quantile(0.0) == 0.0, "the same prompt again brings nothing new"
    assert profiles.predict("further_hops", PLAN).value == pytest.approx(5 / 3)
    assert profiles.predict("further_hops", CODE).quantile(0.0) == 0.0
    again, reached = profiles.branch_odds("g", "code", "code"), profiles.reach_odds("g", "code")
    assert (again.value, again.evidence) == (pytest.approx(2 / 3), 3.0)
    assert (reached.value, reached.evidence) == (1.0, 3.0)
    assert profiles.reach_odds("g", "test").value == 0.0
    assert profiles.hop_calls("g", "code").value == pytest.approx(5 / 3), "a loop"
    assert profiles.hop_calls("g", "test", declared=2.0).value == 2.0
    assert profiles.branch_odds("g", "test", "code", declared=0.3).value == 0.3, "nobody reached it"
    assert profiles.branch_odds("h", "plan", "code", declared=0.3).source is Source.DECLARED


def test_a_pipeline_that_is_cut_short_teaches_nothing_about_its_end():
    room = Room(policy="edf-cancel", workers=("w1",), min_evidence=1)
    room.serve("a", "r1", graph="g", hop="plan", deadline_s=500.0)
    room.wake(600.0)
    assert room.fabric.run_report("r1")["status"] == "expired"
    assert room.fabric.book.profiles.predict("further_hops", PLAN).source is Source.DEFAULT
    assert room.fabric.book.profiles.reach_odds("g", "plan").source is Source.DECLARED
    assert room.fabric.book.profiles.predict("service_s", PLAN).source is Source.POSITION


def test_growth_is_not_taken_from_calls_that_run_beside_each_other():
    room = Room(workers=("w1",), min_evidence=1)
    room.serve("a", "r", prefix(("r", 1_024)), graph="g", hop="plan")
    for name in ("b", "c"):
        room.arrive(name, "r", prefix(("r", 1_024), (name, 512)), graph="g", hop=name)
    for name in ("b", "c"):
        room.finish(name, prompt=1_536)
    profiles = room.fabric.book.profiles
    assert profiles.predict("growth_tokens", ("g", "b", "m")).source is Source.POSITION
    assert profiles.predict("growth_tokens", ("g", "c", "m")).source is Source.POOL


def test_a_long_trail_is_thinned_and_still_tells_how_many_hops_follow():
    profiles, trail = Profiles(CONFIG), Trail()
    profiles.observe_call(call(hop="step"), 10, 1.0)
    for _ in range(1_000):
        trail.add(("g", "step", "m"))
    assert len(trail.entries) <= 128
    profiles.observe_end("g", trail, {"step": 1_000}, ())
    further = profiles.predict("further_hops", ("g", "step", "m"))
    assert further.value == pytest.approx(499.5, rel=0.02)
    assert further.quantile(0.9) == pytest.approx(900, rel=0.03)
    assert further.evidence == pytest.approx(1_000, rel=0.02)


def test_transitions_are_bounded_and_follow_drift():
    seen = Transitions()
    for number in range(3_000):
        seen.observe({"a": 1, f"hop{number}": 2}, [("a", f"hop{number}")])
    assert len(seen.to_dict()["hops"]) <= 256 and len(seen.to_dict()["edges"]) <= 1_024
    assert seen.reached("a") == seen.pipelines <= 2_000 and seen.taken("a", "hop2999") == 1.0
    assert seen.calls_per_pipeline("hop2999") == 2.0 and seen.calls_per_pipeline("hop0") == 0.0
    for _ in range(8_000):
        seen.observe({"a": 1, "b": 1}, [("a", "b")])
    assert seen.taken("a", "b") / seen.reached("a") > 0.9, "what was so long ago hardly counts"


def test_a_pipeline_may_be_silent_for_twice_the_quantile_of_learned_pauses_and_for_the_floor_at_least():
    profiles = Profiles(CONFIG)
    profiles.observe_call(call(), 10, 1.0)
    for _ in range(2):
        profiles.observe_gap_after(PLAN, 10.0)
    assert profiles.over_after_s(PLAN) == inf, "two pauses are not three"
    profiles.observe_gap_after(PLAN, 10.0)
    assert profiles.over_after_s(PLAN) == about(20.0)
    for number in range(17):
        profiles.observe_gap_after(PLAN, 11.0 + number)
    assert profiles.over_after_s(PLAN) == pytest.approx(52.0, rel=0.06), "p95 of 20 pauses is their 19th or so: 26"
    for _ in range(1_000):
        profiles.observe_gap_after(PLAN, 0.5)
    assert profiles.over_after_s(PLAN) == 5.0, "the floor"
    assert profiles.over_after_s(("g", "new", "m")) == 5.0, "as its pool's others"
    assert profiles.over_after_s(("g", "new", "n")) == inf


def test_a_run_that_went_silent_is_reported_as_probably_over():
    room = Room(workers=("w1",), over_floor_s=5.0)
    for number in range(9):
        room.serve(f"c{number}", "r", graph="g", hop="chat")
        room.now_s += 8.0
    room.wake(room.now_s)
    assert room.fabric.run_report("r")["probably_over"] is False
    room.arrive("open", "r", graph="g", hop="chat")
    room.wake(room.now_s + 100.0)
    assert room.fabric.run_report("r")["probably_over"] is False, "a call of it is open"
    room.finish("open")
    room.wake(room.now_s + 15.0)
    assert room.fabric.run_report("r")["probably_over"] is False, "not yet 16 s, twice its pauses"
    room.wake(room.now_s + 2.0)
    assert [room.fabric.run_reports(1)[0][key] for key in ("status", "probably_over")] == ["live", True]
    room.serve("back", "r", graph="g", hop="chat")
    assert room.fabric.run_report("r")["probably_over"] is False, "it was not"
    room.close("r")
    assert room.fabric.run_report("r")["probably_over"] is True


def test_a_run_of_one_call_falls_silent_too_and_by_the_pauses_after_that_very_call():
    room = Room(workers=("w1",), over_floor_s=1.0, min_evidence=4)
    for number in range(4):
        room.serve(f"a{number}", f"r{number}", graph="g", hop="ask")
        room.now_s += 4.0
        room.serve(f"b{number}", f"r{number}", graph="g", hop="tool")
        room.now_s += 40.0
        room.serve(f"c{number}", f"r{number}", graph="g", hop="ask", final=True)
    room.serve("one", "once", graph="g", hop="ask")
    room.serve("two", "twice", graph="g", hop="ask")
    room.serve("three", "twice", graph="g", hop="tool")
    room.wake(room.now_s + 9.0)
    assert over_of(room) == [True, False], "twice 4 s after `ask`"
    room.wake(room.now_s + 72.0)
    assert over_of(room) == [True, True], "twice 40 s after `tool`"


def over_of(room: Room) -> list[object]:
    return [room.fabric.run_report(run)["probably_over"] for run in ("once", "twice")]


def taught() -> Profiles:
    room = Room(workers=("w1",), min_evidence=1)
    for number in range(12):
        run, long = f"r{number}", number % 3 == 0
        room.serve(f"{run}/1", run, prefix(("s", 1_024), (run, 1_024)), graph="g", hop="plan")
        room.now_s += 1.0 + number
        tail = prefix(("s", 1_024), (run, 1_024), ("more", 4_096 if long else 512))
        room.serve(f"{run}/2", run, tail, graph="g", hop="code", parents=("plan",), final=True)
    return room.fabric.book.profiles


def answers(profiles: Profiles) -> list[object]:
    places = [("g", hop, "m") for hop in ("plan", "code", "")]
    found: list[object] = [profiles.duty("m"), profiles.return_odds("m"), profiles.pool_context_tokens("m")]
    for place in places:
        asked = call(hop=place[1])
        found += [
            profiles.expected_service_s(asked),
            profiles.expected_output_tokens(asked),
            profiles.residence_s(asked),
        ]
        for quantity in QUANTITIES:
            said = profiles.predict(quantity, place)
            found += [said.value, said.source, *(said.quantile(q / 10) for q in range(11))]
            found.append(pytest.approx(said.evidence))
    found += [
        profiles.branch_odds("g", "plan", "code"),
        profiles.reach_odds("g", "code"),
        profiles.hop_calls("g", "code"),
    ]
    return found


def test_what_was_learned_survives_as_json():
    before = taught()
    records = json.loads(json.dumps(list(before.records())))
    after = Profiles.from_records(records, FabricConfig(min_evidence=1))
    assert answers(after) == answers(before)
    assert list(after.records()) == records
    fabric = Fabric(FabricConfig(), policies_named("fabric"), after)
    assert fabric.book.profiles is after
    fewer = Profiles.from_records(records, FabricConfig(max_profiles=1, min_evidence=1))
    assert fewer.predict("service_s", CODE).source is Source.POSITION, "the most recent ones are kept"
    assert fewer.predict("service_s", PLAN).source is Source.POOL


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda records: records.clear(), "does not begin"),
        (lambda records: records.__setitem__(0, [1]), "does not begin"),
        (lambda records: records[0].update(amf_profiles=99), "does not begin"),
        (lambda records: records.pop(), "should have 5 records and has 4"),
        (lambda records: records.__setitem__(1, "text"), "record 1 is damaged"),
        (lambda records: records[1].pop("means"), "record 1 is damaged: KeyError: 'means'"),
        (lambda records: records[1]["means"].update(service_s=[-1.0, 3]), "-1.0 is no number from 0 on"),
        (lambda records: records[1]["means"].update(service_s=[1.0]), "record 1 is damaged"),
        (lambda records: records[1].update(returns=10**9), "idle pipelines came back"),
        (lambda records: records[1]["sketches"]["service_s"].update(sum="x"), "'x' is no number"),
        (lambda records: records[1]["sketches"]["service_s"].update(sum=10**400), "record 1 is damaged"),
        (lambda records: records[1]["sketches"]["service_s"].update(buckets=[[0.5, 1.0]]), "no bucket 0.5"),
        (lambda records: records[1]["sketches"]["service_s"].update(buckets=[[10**9, 1.0]]), "no bucket 1000000000"),
        (lambda records: records[1]["sketches"]["service_s"].update(buckets=[[3, 0.0]]), "weighs 0.0"),
        (lambda records: records[2].update(graph=7), "7 is no name"),
        (lambda records: records[4]["edges"].append(["plan", "code"]), "record 4 is damaged"),
        (lambda records: records[4]["edges"].append(["plan", "code", float("nan")]), "nan is no number"),
    ],
)
def test_what_is_damaged_or_foreign_is_refused_with_the_reason(spoil, words: str):
    records = deepcopy(list(taught().records()))
    spoil(records)
    with pytest.raises(ValueError, match=words):
        Profiles.from_records(records, FabricConfig())

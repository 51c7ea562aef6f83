"""Events in, decisions out. Every event is followed by a check of every invariant (see kit.Room)."""

from dataclasses import replace

import pytest

from amf.core.cost import decode_iteration_s, prefill_s
from amf.core.decisions import Cancel, Dispatch, Refuse, WakeAt
from amf.core.events import (
    CallFinished,
    FirstToken,
    GraphDeclared,
    PipelineClosed,
    PrefixEvicted,
    PrefixStored,
    Woke,
    WorkerDraining,
)
from amf.core.graph import graph_from_dict
from kit import Room, dispatch_in, kinds, prefix


def test_a_call_is_admitted_and_dispatched_and_its_pipeline_stays_open():
    room = Room()
    assert kinds(room.arrive("c1", run="r")) == ["Admit", "Dispatch"]
    room.first_token("c1")
    assert kinds(room.finish("c1")) == []
    report = room.fabric.run_report("r")
    assert report is not None and report["status"] == "live" and report["finished"] == 1


def test_a_final_call_closes_its_pipeline_when_it_ends():
    room = Room()
    room.arrive("c1", run="r", final=True)
    room.finish("c1")
    assert room.fabric.run_report("r")["status"] == "final"
    assert len(room.fabric.book.pipelines) == 0


def test_the_second_hop_goes_where_its_prefix_is_warm():
    room = Room()
    first = room.serve("c1", "r", prefix(("sys", 2_000), ("a", 30_000)))
    placed = dispatch_in(room.arrive("c2", "r", prefix(("sys", 2_000), ("a", 30_000), ("b", 500))))
    assert placed.worker == first
    assert placed.hit_tokens == 32_000


@pytest.mark.parametrize("together", [True, False])
def test_blocks_evicted_to_store_others_may_be_said_with_them(together: bool):
    """Evicted first: of what is in both a copy stays."""
    room = Room(workers=("w1",))
    old, new = prefix(("a", 3_200)), prefix(("a", 1_600), ("b", 1_600))
    room.send(PrefixStored(at_s=0.0, name="w1", keys=old.keys))
    if together:
        room.send(PrefixStored(at_s=0.0, name="w1", keys=new.keys, evicted=old.keys))
    else:
        room.send(PrefixEvicted(at_s=0.0, name="w1", keys=old.keys))
        room.send(PrefixStored(at_s=0.0, name="w1", keys=new.keys))
    assert dispatch_in(room.arrive("c1", "r", old)).hit_tokens == 1_600
    assert room.fabric.book.pools["m"].warmth._observed.blocks("w1") == len(new.keys)


def test_in_flight_prefixes_count_as_warm_so_siblings_meet_on_one_worker():
    room = Room()
    shared = ("doc", 20_000)
    first = dispatch_in(room.arrive("a", "r", prefix(shared, ("a", 200))))
    room.now_s = 5.0
    room.first_token("a")
    second = dispatch_in(room.arrive("b", "r", prefix(shared, ("b", 200))))
    assert second.worker == first.worker and second.hit_tokens == 20_000


def test_agents_that_share_a_system_prompt_do_not_herd_on_one_worker():
    room = Room(workers=("w1", "w2", "w3", "w4"))
    counts = dict.fromkeys(("w1", "w2", "w3", "w4"), 0)
    for agent in range(24):
        room.now_s += 1.0
        call = f"agent{agent}"
        placed = dispatch_in(room.arrive(call, prompt=prefix(("system", 1_024), (call, 2_048))))
        room.now_s += 1.0
        room.first_token(call)
        room.now_s += 1.0
        room.finish(call, prompt=3_072, cached=placed.hit_tokens)
        counts[placed.worker] += 1
    assert max(counts.values()) <= 1.5 * 24 / 4, counts


@pytest.mark.parametrize(
    "policy", ["round-robin", "least-loaded", "session-affinity", "prefix-affinity", "kv-cost", "essay"]
)
def test_baselines_bind_at_once_even_under_load(policy: str):
    room = Room(policy)
    for number in range(40):
        assert "Dispatch" in kinds(room.arrive(f"c{number}", prompt=prefix((f"c{number}", 60_000))))


def test_one_cold_prefill_per_worker_and_the_rest_is_held():
    room = Room(workers=("w1",))
    assert kinds(room.arrive("c1", prompt=prefix(("a", 100_000)))) == ["Admit", "Dispatch"]
    assert kinds(room.arrive("c2", prompt=prefix(("b", 100_000)))) == ["Admit", "Hold"]
    room.now_s = 27.0
    assert dispatch_in(room.first_token("c1")).call_id == "c2"


def full_room(**config: object) -> Room:
    """One worker of 500 K tokens that holds 4 x 110 K of context, the last of them in use."""
    room = Room(workers=("w1",), **{"hold_fraction": 1.0, **config})
    for number in range(4):  # about 30 s each
        room.serve(f"s{number}", f"s{number}", prefix((f"s{number}", 110_000)))
    room.arrive("busy", "s3", prefix(("s3", 110_000), ("more", 600)))
    room.first_token("busy")
    return room


def test_a_cold_call_is_held_back_from_memory_inside_its_break_even_time():
    room = full_room()
    held = room.arrive("cold", "new", prefix(("new", 100_000)))
    assert kinds(held) == ["Admit", "Hold"]
    assert "protected" in held[1].because.reason
    # a warm session passes it
    back = room.arrive("s0b", "s0", prefix(("s0", 110_000), ("more", 600)))
    assert dispatch_in(back).hit_tokens == 110_000
    room.first_token("s0b")
    room.finish("s0b", prompt=110_600, cached=110_000)
    # T* (about 140 s) after their last call the idle contexts are protected no longer
    placed, begun_s = [], room.now_s
    while not placed:
        room.now_s += 5.0
        placed = [d for d in room.send(Woke(at_s=room.now_s)) if type(d).__name__ == "Dispatch"]
        assert room.now_s < begun_s + 150.0, "the cold call was never released"
    assert placed[0].call_id == "cold" and room.now_s > begun_s + 20.0


def test_a_worker_that_runs_nothing_keeps_its_contexts_for_their_time_and_no_longer():
    room = full_room()
    begun_s = room.now_s
    assert "Hold" in kinds(room.arrive("cold", "new", prefix(("new", 100_000))))
    assert "Dispatch" not in kinds(room.finish("busy", prompt=110_600, cached=110_000))
    assert dispatch_in(room.arrive("s0b", "s0", prefix(("s0", 110_000), ("more", 600)))).hit_tokens == 110_000
    room.finish("s0b", prompt=110_600, cached=110_000)
    placed: list[object] = []
    while not placed:
        placed = [each for each in room.wake(room.now_s + 5.0) if isinstance(each, Dispatch)]
        assert room.now_s < begun_s + 150.0, "T* of these contexts is about 140 s"
    assert room.now_s > begun_s + 20.0


def test_who_has_suffered_most_for_its_length_goes_first():
    """Five new runs, 27 s of prefill each, one at a time: the last has a stretch of 5 at its second call, and goes before
    a new run that came while it worked. The first, never kept waiting, does not."""
    room, runs = Room(workers=("w1",), hold_fraction=0.0), ("a", "b", "c", "d", "e")
    for run in runs:
        room.arrive(f"{run}0", run, prefix((run, 100_000)))
    for run in runs:
        room.now_s += 27.0
        room.first_token(f"{run}0")
        room.finish(f"{run}0", prompt=100_000, cached=0)
    room.arrive("busy", "f", prefix(("f", 100_000)))
    for run in ("new", "a", "e"):
        room.now_s += 2.0
        room.arrive(f"{run}1", run, prefix((f"{run}1", 100_000)))
    order = []
    for sent in ("busy", "e1", "new1"):
        room.now_s += 27.0
        order.append(dispatch_in(room.first_token(sent)).call_id)
    assert order == ["e1", "new1", "a1"]


def test_a_lapsed_cold_call_no_longer_yields_to_idle_contexts():
    room = full_room(lapse_s=60.0, hold_fraction=1e6)
    room.arrive("cold", "new", prefix(("new", 100_000)))
    assert kinds(room.wake(room.now_s + 59.0)) == []
    assert dispatch_in(room.wake(room.now_s + 2.0)).call_id == "cold"


def test_a_failed_attempt_goes_to_another_worker_and_then_gives_up():
    room = Room(workers=("w1", "w2", "w3"), max_attempts=3)
    first = dispatch_in(room.arrive("c1"))
    second = dispatch_in(room.fail("c1", 1))
    third = dispatch_in(room.fail("c1", 2))
    assert len({first.worker, second.worker, third.worker}) == 3
    (refused,) = room.fail("c1", 3)
    assert isinstance(refused, Refuse) and refused.code == "upstream_failed" and "3 attempts" in refused.message


def test_a_failure_after_the_first_byte_or_by_the_request_is_not_retried():
    room = Room()
    room.arrive("c1")
    assert room.fail("c1", 1, streamed=True) == []
    room.arrive("c2")
    assert room.fail("c2", 1, retryable=False) == []
    assert room.fabric.totals()["failed"] == 2


def test_a_lost_worker_gives_back_calls_without_a_first_byte_only():
    room = Room(workers=("w1",))
    room.arrive("started")
    room.first_token("started")
    room.arrive("waiting-for-a-byte")
    room.join("w2")
    decisions = room.lose("w1")
    assert kinds(decisions) == ["Cancel", "Dispatch"]
    assert decisions[0].call_id == "waiting-for-a-byte" and dispatch_in(decisions).worker == "w2"
    room.fail("started", streamed=True)
    room.finish("waiting-for-a-byte", attempt=2)
    assert room.fabric.totals()["live_calls"] == 0


def test_without_workers_calls_wait_a_little_and_are_then_refused_with_a_hint():
    room = Room(workers=("w1",), no_worker_wait_s=5.0)
    room.lose("w1")
    held = room.arrive("c1")
    assert kinds(held) == ["Admit", "Hold"] and any(isinstance(d, WakeAt) for d in held)
    assert kinds(room.wake(4.9)) == []
    (refused,) = room.wake(5.1)
    assert isinstance(refused, Refuse) and refused.code == "no_worker" and refused.retry_after_s == 5.0
    room.arrive("c2")
    assert dispatch_in(room.join("w1")).call_id == "c2"


def test_a_draining_worker_takes_no_new_call_but_finishes_its_own():
    room = Room()
    placed = dispatch_in(room.arrive("c1"))
    room.send(WorkerDraining(at_s=0.0, name=placed.worker))
    for number in range(4):
        assert dispatch_in(room.arrive(f"n{number}")).worker != placed.worker
    room.finish("c1")
    assert room.fabric.run_report("c1")["finished"] == 1


def test_a_client_that_leaves_frees_the_worker_and_the_queue():
    room = Room(workers=("w1",))
    room.arrive("c1", prompt=prefix(("a", 100_000)))
    room.arrive("c2", prompt=prefix(("b", 100_000)))
    (cancel, dispatch) = room.cancel("c1")
    assert isinstance(cancel, Cancel) and cancel.worker == "w1"
    assert dispatch.call_id == "c2"
    room.cancel("c2")
    assert room.fabric.book.workers["w1"].committed_tokens == 0


def test_late_duplicate_and_unknown_news_changes_nothing():
    room = Room()
    room.arrive("c1")
    room.fail("c1", 1)
    before = room.fabric.totals()
    for event in (
        FirstToken(at_s=0.0, call_id="c1", attempt=1),
        CallFinished(at_s=0.0, call_id="c1", attempt=1, prompt_tokens=1, output_tokens=1),
        FirstToken(at_s=0.0, call_id="never", attempt=1),
    ):
        assert room.send(event) == []
    assert room.arrive("c1") == []
    assert room.lose("never") == []
    assert room.fabric.totals() == before


def test_a_pipeline_refused_at_its_first_hop_leaves_no_trace():
    room = Room(max_live_pipelines=2)
    room.arrive("a")
    room.arrive("b")
    (refused,) = room.arrive("c")
    assert refused.code == "pipeline_admission_refused" and refused.retry_after_s > 0
    assert room.fabric.run_report("c") is None
    assert "Dispatch" in kinds(room.arrive("a2", run="a")), "a later hop of an admitted pipeline is never refused"
    room.now_s = 10.0
    (late,) = room.arrive("d", deadline_s=9.0)
    assert late.code == "deadline_exceeded" and "passed" in late.message


def test_a_closed_run_cancels_what_it_left_open():
    room = Room(workers=("w1",))
    room.arrive("c1", run="r", prompt=prefix(("a", 100_000)))
    room.arrive("c2", run="r", prompt=prefix(("b", 100_000)))
    assert kinds(room.close("r")) == ["Cancel", "Refuse", "Refuse"]
    assert room.fabric.run_report("r")["status"] == "closed"


def test_an_idle_pipeline_is_closed_and_forgotten():
    room = Room(pipeline_idle_s=60.0)
    room.serve("c1", "r")
    room.now_s += 61.0
    room.arrive("c2", "other")
    assert room.fabric.run_report("r")["status"] == "idle"
    assert room.fabric.book.lanes.get("r", "m") is None


def test_least_slack_goes_first_when_calls_wait():
    room = Room(workers=("w1",))
    room.arrive("busy", prompt=prefix(("a", 100_000)))
    room.arrive("patient", prompt=prefix(("b", 100_000)))
    room.arrive("urgent", prompt=prefix(("c", 100_000)), deadline_s=100.0)
    room.now_s = 27.0
    placed = dispatch_in(room.first_token("busy"))
    assert placed.call_id == "urgent" and placed.budget_s == pytest.approx(73.0)


def test_a_worker_that_joins_anew_is_believed_empty():
    room = Room(workers=("w1",))
    room.serve("c1", "r", prefix(("a", 20_000)))
    room.join("w1")
    assert dispatch_in(room.arrive("c2", "r", prefix(("a", 20_000), ("b", 100)))).hit_tokens == 0


def test_because_carries_the_prices_of_the_alternatives():
    room = Room(workers=("w1", "w2", "w3"))
    placed = dispatch_in(room.arrive("c1", prompt=prefix(("a", 10_000))))
    prices = placed.because.alternatives
    assert prices[0].worker == placed.worker
    assert all(price.prefill_s > 1.0 for price in prices), "10 K cold tokens on a 70B take seconds"
    assert [p.total_s for p in prices] == sorted(p.total_s for p in prices)


def test_time_may_not_run_backwards():
    room = Room()
    room.wake(5.0)
    with pytest.raises(ValueError, match="backwards"):
        room.fabric.handle(Woke(at_s=4.0))


def test_a_miss_reported_by_the_engine_corrects_the_registry():
    room = Room(workers=("w1",))
    room.serve("old", "old", prefix(("old", 50_000)))
    room.serve("c1", "r", prefix(("a", 30_000)))
    room.now_s += 1.0
    room.arrive("c2", "r", prefix(("a", 30_000), ("b", 500)))
    room.first_token("c2")
    room.finish("c2", prompt=30_500, cached=0)  # the engine had evicted it, and so all that is older
    drift = room.fabric.worker_reports()[0]["drift"]
    assert drift["overestimated_tokens"] == 30_000 and drift["forgotten_tokens"] == 50_000
    assert dispatch_in(room.arrive("old2", "old", prefix(("old", 50_000)))).hit_tokens == 0


def test_a_wrong_profile_is_learned_by_the_pool_and_makes_no_worker_a_favourite():
    room = Room(workers=("w1", "w2", "w3", "w4"))
    for number in range(12):  # ten times faster than the profile says, one call at a time
        room.now_s += 10.0
        call = f"c{number}"
        room.arrive(call, prompt=prefix((call, 20_000)))
        room.now_s += 0.5
        room.first_token(call)
        room.finish(call, prompt=20_000, cached=0)
    reports = room.fabric.worker_reports()
    assert all(report["prefill_scale"] < 0.3 for report in reports), (
        "untried workers are believed as fast as their pool"
    )
    assert max(report["dispatched"] for report in reports) <= 5


@pytest.mark.parametrize(("prompt_tokens", "output_tokens", "slower"), [(100, 500, "decode"), (40_000, 20, "prefill")])
def test_the_end_of_a_call_that_does_not_stream_says_how_fast_its_worker_is(prompt_tokens, output_tokens, slower):
    room = Room(workers=("w1", "w2"))
    worker = room.fabric.book.workers["w1"]
    expected_s = sum(
        (prefill_s(worker.profile, prompt_tokens, 0), (output_tokens - 1) * decode_iteration_s(worker.profile, 1, 600))
    )
    for number in range(30):
        call = f"c{number}"
        room.now_s += 100.0
        room.arrive(call, prompt=prefix((call, prompt_tokens)), streams=False)
        room.now_s += 3.0 * expected_s
        room.finish(call, prompt=prompt_tokens, cached=0, output=output_tokens)
    for report in room.fabric.worker_reports():
        scales = {"prefill": report["prefill_scale"], "decode": report["decode_scale"]}
        assert scales.pop(slower) == pytest.approx(3.0, rel=0.25)
        assert list(scales.values()) == [1.0], "of the other nothing was seen"


def test_a_slow_worker_is_told_apart_from_its_pool():
    room = Room(workers=("fast", "slow"))
    for number in range(20):
        room.now_s += 10.0
        call = f"c{number}"
        placed = dispatch_in(room.arrive(call, prompt=prefix((call, 20_000))))
        room.now_s += 5.0 if placed.worker == "fast" else 25.0
        room.first_token(call)
        room.finish(call, prompt=20_000, cached=0)
    scales = {report["name"]: report["prefill_scale"] for report in room.fabric.worker_reports()}
    assert scales["slow"] > 2.0 * scales["fast"]
    assert room.fabric.book.workers["fast"].dispatched > 2 * room.fabric.book.workers["slow"].dispatched


def test_a_large_call_is_not_overtaken_for_ever_by_small_ones():
    room = Room(workers=("w1",), lapse_s=60.0, reserve_s=60.0)
    room.arrive("a", prompt=prefix(("a", 200_000)))
    room.now_s = 60.0
    room.first_token("a")
    assert kinds(room.arrive("large", prompt=prefix(("l", 400_000), block=64))) == ["Admit", "Hold"]
    assert "Dispatch" in kinds(room.arrive("small1", prompt=prefix(("s1", 20_000)))), "while it has not waited long"
    room.wake(130.0)
    assert "Hold" in kinds(room.arrive("small2", prompt=prefix(("s2", 20_000)))), "the worker is kept free for it now"
    placed = room.finish("a", prompt=200_000, cached=0)
    assert dispatch_in(placed).call_id == "large"


def test_only_one_worker_of_a_pool_is_kept_free():
    room = Room(workers=("w1", "w2", "w3"), lapse_s=60.0, reserve_s=60.0)
    for number in range(3):
        room.arrive(f"a{number}", prompt=prefix((f"a{number}", 200_000), block=64))
        room.now_s += 1.0
    room.now_s = 100.0
    for number in range(3):
        room.first_token(f"a{number}")
    for number in range(3):
        room.arrive(f"large{number}", prompt=prefix((f"l{number}", 400_000), block=64))
    room.wake(200.0)
    small = [kinds(room.arrive(f"small{n}", prompt=prefix((f"s{n}", 2_000)))) for n in range(2)]
    assert all("Dispatch" in kind for kind in small), "two workers still serve what fits"


@pytest.mark.parametrize("end", ["finish", "fail", "cancel", "exhausted"])
def test_a_pipeline_is_over_with_its_final_call_however_that_ends(end: str):
    room = Room(workers=("w1",), max_attempts=1)
    room.arrive("c1", run="r", final=True)
    if end == "finish":
        room.finish("c1")
    elif end == "fail":
        room.fail("c1", streamed=True)
    elif end == "cancel":
        room.cancel("c1")
    else:
        room.fail("c1")
    assert room.fabric.run_report("r")["status"] == "final"


def test_a_look_is_bounded_however_many_calls_wait():
    room = Room(workers=("w1",), max_scan_calls=8)
    looked_at = []
    route = room.fabric.policies.route
    room.fabric.policies = replace(room.fabric.policies, route=lambda s, v: looked_at.append(s) or route(s, v))
    room.arrive("busy", prompt=prefix(("busy", 100_000), block=64))
    for number in range(100):
        room.now_s += 0.01
        looked_at.clear()
        room.arrive(f"c{number}", prompt=prefix((f"c{number}", 100_000), block=64))
        assert (len(looked_at) <= 8 and looked_at[-1].call.call_id == f"c{number}") or number >= 8
    room.now_s = 27.0
    assert dispatch_in(room.first_token("busy")).call_id == "c0"


def test_a_declared_hint_stands_for_a_hop_nobody_has_seen():
    room = Room()
    hops = {"a": {"model": "m"}, "b": {"model": "m", "after": ["a"], "expected_s": 12.0}}
    room.send(GraphDeclared(at_s=0.0, graph=graph_from_dict({"name": "g", "hops": hops})))
    room.serve("other")  # the pool has a mean by now
    placed = dispatch_in(room.arrive("c", graph="g", hop="a", deadline_s=room.now_s + 60.0))
    assert placed.budget_s == pytest.approx(48.0)


def test_a_cancelled_run_does_no_more_and_a_closed_one_may_open_anew():
    room = Room()
    for run, cancelled in (("over", True), ("again", False)):
        room.arrive(f"{run}1", run=run)
        room.send(PipelineClosed(at_s=0.0, run_id=run, cancelled=cancelled))
    (refused,) = room.arrive("over2", run="over")
    assert refused.code == "run_cancelled"
    assert "Dispatch" in kinds(room.arrive("again2", run="again"))


def test_a_drained_worker_that_joins_as_it_was_goes_on_with_what_it_has():
    room = Room(workers=("w1",))
    room.serve("c0", "r", prefix(("a", 20_000)))
    room.arrive("c1", "s")
    room.send(WorkerDraining(at_s=room.now_s, name="w1"))
    assert kinds(room.arrive("c2", "r", prefix(("a", 20_000), ("b", 160)))) == ["Hold"]
    decisions = room.join("w1")
    assert kinds(decisions) == ["Dispatch"] and dispatch_in(decisions).hit_tokens == 20_000
    room.finish("c1")
    assert room.fabric.run_report("s")["finished"] == 1


def test_a_very_long_run_forgets_its_oldest_hops():
    room = Room(max_hops_per_pipeline=4)
    for number in range(8):
        parents = (f"h{number - 1}",) if number else ()
        room.serve(f"c{number}", "r", hop=f"h{number}", parents=parents)
    assert list(room.fabric.known_hops("r")) == ["h4", "h5", "h6", "h7"]
    assert len(room.fabric.run_report("r")["edges"]) == 4


def test_contexts_make_way_for_lapsed_calls_only_now_and_then():
    """Else overload, where every call lapses, would end all protection."""
    room = full_room(lapse_s=60.0, hold_fraction=1e6, yield_share=0.1)
    for name in ("one", "two"):
        room.arrive(name, name, prefix((name, 100_000)))
    placed = dispatch_in(room.wake(room.now_s + 61.0))
    sent_s = room.now_s
    room.now_s += 27.0
    room.first_token(placed.call_id)
    room.finish(placed.call_id, prompt=100_000, cached=0)
    later = next(at_s for at_s in range(30, 1_000, 10) if "Dispatch" in kinds(room.wake(sent_s + at_s)))
    assert 250 <= later <= 300, "a prefill of 27 s in 270"

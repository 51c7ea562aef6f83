"""The opponents' published rules on hand-made cases. The older ones are in test_policies.py."""

from collections.abc import Sequence

import pytest

from amf.core.events import GraphDeclared
from amf.core.graph import graph_from_dict
from amf.core.policy.bundles import BUNDLES
from kit import Room, dispatch_in, kinds, prefix

QUEUED = ("continuum", "plas", "atlas", "fcfs", "edf", "least-slack", "hexgen-flow", "heft", "static-split")
BLOCK = 1_000


def prompt(name: str, tokens: int):
    return prefix((name, tokens), block=BLOCK)


def placed(decisions) -> list[str]:
    return [each.call_id for each in decisions if type(each).__name__ == "Dispatch"]


SOON_S = 10.0  # less than a prefill of 100 K tokens takes


def busy(policy: str, **config: object) -> Room:
    """One worker with a prefill of half a minute in front, so that what comes next waits in our queue."""
    room = Room(policy, ("w",), start_soon_s=SOON_S, **config)
    dispatch_in(room.arrive("wall", prompt=prompt("wall", 100_000)))
    return room


def served_order(room: Room, calls: Sequence[str]) -> list[str]:
    """The order in which waiting calls are sent when each starts as soon as the one before has its first token."""
    order = placed(room.first_token("wall"))
    while order[-1] in calls and len(order) < len(calls):
        order += placed(room.first_token(order[-1]))
    return order


# --- Dynamo and llm-d -----------------------------------------------------------------------------------------------------


def test_the_agentic_preset_weighs_prefill_four_times_warmth_twice_and_a_call_as_64_blocks():
    room = Room("dynamo-agentic", ("a", "b"))
    room.serve("c1", "r", prompt("x", 16_000))
    again = dispatch_in(room.arrive("c2", "r", prefix(("x", 16_000), ("y", 32_000), block=BLOCK)))
    # Blocks of 16 tokens. a: 4 x (48,000 - 2 x 16,000) / 16 + 48,000 / 16; b: 4 x 48,000 / 16 + 48,000 / 16
    assert [price.note for price in again.because.alternatives] == ["cost 7000 blocks", "cost 15000 blocks"]
    assert again.worker == "a"
    third = dispatch_in(room.arrive("c3", "s", prompt("z", 1_600)))
    assert third.worker == "b"
    room.first_token("c3")
    fourth = dispatch_in(room.arrive("c4", "t", prompt("q", 16_000)))
    # b: 4 x 16,000 / 16, 1,000 tokens (whole blocks of ours) and 100 of output that decode, 16,000 / 16, one call
    assert fourth.because.alternatives[0].note == f"cost {4_000 + (1_100 + 16_000) / 16 + 64:.0f} blocks"


def test_overlap_counts_twice_only_under_the_agentic_preset():
    """A warm worker with a long queue of decodes: the default preset leaves it, the agentic one stays."""
    chosen = {}
    for policy in ("kv-cost", "dynamo-agentic"):
        room = Room(policy, ("a", "b"))
        room.serve("c1", "r", prompt("x", 20_000))
        placed_at = dispatch_in(room.arrive("long", "r", prefix(("x", 20_000), ("l", 30_000), block=BLOCK)))
        assert placed_at.worker == "a"
        room.first_token("long")
        chosen[policy] = dispatch_in(room.arrive("c2", "r", prefix(("x", 20_000), ("y", 1_000), block=BLOCK))).worker
    assert chosen == {"kv-cost": "b", "dynamo-agentic": "a"}


def test_llm_d_adds_queue_memory_and_prefix_scores_two_two_three():
    room = Room("llm-d", ("a", "b"))
    assert room.serve("c1", "r", prompt("x", 100_000)) == "a"
    warm = dispatch_in(room.arrive("c2", "r", prefix(("x", 100_000), ("y", 100_000), block=BLOCK)))
    # a: 2 x 1 (no queues) + 2 x 1 (nothing in flight) + 3 x 1/2;  b: 2 + 2 + 0
    assert [price.note for price in warm.because.alternatives] == ["score 5.50", "score 4.00"]
    third = dispatch_in(room.arrive("c3", "r", prompt("x", 10_000)))
    # a: 2 + 2 x (1 - 200,100 / 500,000) + 3 x 9,999 / 10,000: one prefill is no queue
    assert third.worker == "a" and third.because.alternatives[0].note == "score 6.20"
    fourth = dispatch_in(room.arrive("c4", "s", prompt("z", 10_000)))
    # a has a queue of one and b none, which is 0 against 2, and more memory in use
    assert fourth.worker == "b"
    assert [price.note for price in fourth.because.alternatives] == ["score 4.00", "score 1.16"]


# --- the central queue ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", QUEUED)
def test_queued_bundles_bind_late_and_to_the_emptiest_that_can_start(policy: str):
    room = Room(policy, ("a", "b"), start_soon_s=SOON_S)
    assert dispatch_in(room.arrive("c1", prompt=prompt("c1", 100_000))).worker == "a"
    assert dispatch_in(room.arrive("c2", prompt=prompt("c2", 100_000))).worker == "b"
    assert kinds(room.arrive("c3", prompt=prompt("c3", 100_000))) == ["Admit", "Hold"]
    room.now_s = 5.0  # sooner than believed
    assert dispatch_in(room.first_token("c2")).worker == "b"


@pytest.mark.parametrize("policy", QUEUED)
def test_a_call_held_for_memory_is_not_overtaken_on_the_worker_it_claims(policy: str):
    room = Room(policy, ("w",))
    room.arrive("big", prompt=prompt("big", 300_000))
    room.now_s = 200.0
    room.first_token("big")
    assert kinds(room.arrive("large", prompt=prompt("large", 250_000))) == ["Admit", "Hold"]
    if policy == "heft":
        return  # nothing is known of either: the order among equals is arrival, as for the others
    room.now_s += 1.0
    assert kinds(room.arrive("small", prompt=prompt("small", 3_000))) == ["Admit", "Hold"]
    assert placed(room.finish("big", prompt=300_000)) == ["large"]


def test_a_prompt_that_fits_no_worker_is_sent_for_the_engine_to_say_so():
    room = busy("fcfs")
    assert "Dispatch" in kinds(room.arrive("never", prompt=prompt("never", 600_000)))


def test_fcfs_serves_in_order_of_arrival():
    room = busy("fcfs")
    for at_s, call in enumerate(("c3", "c1", "c2")):
        room.now_s = float(at_s)
        room.arrive(call)
    room.now_s = 30.0
    assert served_order(room, ("c3", "c1", "c2")) == ["c3", "c1", "c2"]


def test_edf_goes_by_the_pipeline_deadline_and_counts_none_as_due_after_lapse():
    room = busy("edf", lapse_s=100.0)
    for call, deadline_s in (("late", 300.0), ("none", None), ("soon", 60.0)):
        room.arrive(call, deadline_s=deadline_s)
    room.now_s = 30.0
    assert served_order(room, ("late", "none", "soon")) == ["soon", "none", "late"]


def declare(room: Room, *pipelines: dict[str, float]) -> None:
    """Chains g0, g1, ...: hop name -> seconds its declaration expects."""
    for number, chain in enumerate(pipelines):
        names = list(chain)
        hops = {
            hop: {"model": "m", "expected_s": seconds, "after": names[max(index - 1, 0) : index]}
            for index, (hop, seconds) in enumerate(chain.items())
        }
        room.send(GraphDeclared(at_s=room.now_s, graph=graph_from_dict({"name": f"g{number}", "hops": hops})))


def two_deadlines(policy: str) -> list[str]:
    """`hopeless` has 50 s of path behind it and 45 s left, `tight` 90 s of 120 s, `easy` 10 s of 115 s."""
    room = busy(policy)
    declare(room, {"a": 1.0, "b": 50.0}, {"a": 1.0, "b": 90.0}, {"a": 1.0, "b": 10.0})
    for number, (call, deadline_s) in enumerate((("hopeless", 45.0), ("tight", 120.0), ("easy", 115.0))):
        room.arrive(call, graph=f"g{number}", hop="a", deadline_s=deadline_s)
    room.now_s = 25.0
    return served_order(room, ("hopeless", "tight", "easy"))


@pytest.mark.parametrize(
    ("policy", "order"),
    [
        ("edf", ["hopeless", "easy", "tight"]),
        ("least-slack", ["hopeless", "tight", "easy"]),
        ("hexgen-flow", ["tight", "easy", "hopeless"]),
        ("heft", ["tight", "hopeless", "easy"]),
        ("static-split", ["hopeless", "tight", "easy"]),
    ],
)
def test_what_each_deadline_order_does_with_the_same_three_calls(policy: str, order: list[str]):
    assert two_deadlines(policy) == order


def test_static_split_fixes_shares_at_the_start_and_least_slack_plans_anew():
    for policy, budget_s in (("static-split", 60.0 * 3.0 / 4.0 - 20.0), ("least-slack", 60.0 - 20.0 - 10.0)):
        room = Room(policy, ("w",))
        declare(room, {"a": 10.0, "b": 20.0, "c": 10.0})
        room.arrive("a1", "r", graph="g0", hop="a", deadline_s=60.0)
        room.now_s = 20.0
        room.first_token("a1")
        room.now_s = 20.0
        second = dispatch_in(room.arrive("b1", "r", graph="g0", hop="b"))
        assert second.budget_s == pytest.approx(budget_s), policy


# --- programs: Autellix and Continuum -------------------------------------------------------------------------------------


def attained(policy: str, **config: object) -> Room:
    """Program r fans out into two calls of 10 s each, program s has one of 15 s; then w is blocked."""
    room = Room(policy, ("w",), **config)
    for run, calls, service_s in (("r", ("r1", "r2"), 10.0), ("s", ("s1",), 15.0)):
        for call in calls:
            dispatch_in(room.arrive(call, run))
        room.now_s += 1.0
        for call in calls:
            room.first_token(call)
        room.now_s += service_s - 1.0
        for call in calls:
            room.finish(call)
    dispatch_in(room.arrive("wall", prompt=prompt("wall", 100_000)))
    return room


@pytest.mark.parametrize(("policy", "order"), [("plas", ["n", "s2", "r3"]), ("atlas", ["n", "r3", "s2"])])
def test_least_attained_service_is_the_sum_for_plas_and_the_longest_chain_for_atlas(policy: str, order: list[str]):
    room = attained(policy)
    for call, run in (("s2", "s"), ("r3", "r"), ("n", "new")):
        room.arrive(call, run)
    room.now_s += 30.0
    assert served_order(room, order) == order


def test_atlas_adds_a_call_to_the_chain_it_found():
    room = attained("atlas")
    pipelines = room.fabric.book.pipelines
    assert [pipelines.get(run).served_path_s for run in ("r", "s")] == [10.0, 15.0]
    room.arrive("r3", "r")
    assert pipelines.call("r3").served_path_s == 10.0


def test_a_starved_program_goes_first():
    room = attained("plas", autellix_starvation_ratio=2.0)
    room.arrive("s2", "s")
    room.now_s += 29.0
    room.arrive("r3", "r")
    room.now_s += 2.0  # s has waited 31 s for 15 s of service, r 2 s for 20 s
    room.arrive("n", "new")
    assert served_order(room, ("s2", "n", "r3")) == ["s2", "n", "r3"]


def test_a_new_program_is_looked_at_however_many_wait_with_less_service_than_the_clock():
    room = attained("plas", max_scan_calls=2)
    for number in range(4):
        room.arrive(f"s{number + 2}", "s")
    room.arrive("n", "new")
    room.now_s += 30.0
    assert placed(room.first_token("wall"))[0] == "n"


def test_autellix_keeps_long_calls_with_their_program_and_balances_short_ones():
    room = Room("plas", ("a", "b"), start_soon_s=1.0)
    assert room.serve("c1", "r", prompt("x", 50_000)) == "a"
    room.arrive("other", prompt=prompt("o", 30_000))
    assert room.fabric.book.pipelines.call("other").worker == "a"
    held = room.arrive("c2", "r", prefix(("x", 50_000), ("y", 1_000), block=BLOCK))
    assert kinds(held) == ["Hold"] and "own worker a" in held[0].because.reason
    assert dispatch_in(room.arrive("c3", "r", prompt("x", 2_000))).worker == "b"


def test_continuum_stays_with_its_worker_and_serves_the_program_that_began_first():
    room = Room("continuum", ("w", "v"), start_soon_s=SOON_S)
    assert room.serve("old1", "old", prompt("old", 3_000)) == "v", "ties go by name"
    room.now_s += 1.0
    dispatch_in(room.arrive("wall", prompt=prompt("wall", 100_000)))
    dispatch_in(room.arrive("wall2", prompt=prompt("wall2", 100_000)))
    room.now_s += 1.0
    room.arrive("young1", "young", prompt("young", 3_000))
    room.arrive("old2", "old", prompt("old", 4_000))
    room.now_s += 30.0
    assert room.fabric.book.pipelines.call("wall").worker == "v"
    assert placed(room.first_token("wall")) == ["old2", "young1"]


# --- ThunderAgent ---------------------------------------------------------------------------------------------------------


def acting(policy: str, *contexts: int) -> Room:
    """One worker of 500 K tokens where programs p0, p1, ... act with these contexts."""
    room = Room(policy, ("w",))
    for number, tokens in enumerate(contexts):
        room.serve(f"{number}.1", f"p{number}", prompt(f"p{number}", tokens))
    return room


def comes_back(room: Room, number: int, tokens: int):
    return room.arrive(f"{number}.2", f"p{number}", prompt(f"p{number}", tokens))


@pytest.mark.parametrize("policy", ["thunderagent", "thunderagent-fcfs"])
def test_programs_that_fit_are_never_held(policy: str):
    room = acting(policy, 150_000, 100_000, 200_000)
    for number, tokens in ((1, 101_000), (0, 151_000), (2, 201_000)):
        assert kinds(comes_back(room, number, tokens)) == ["Dispatch"]


def test_a_new_program_waits_until_the_sum_of_contexts_has_room_for_it():
    room = acting("thunderagent", 200_000, 200_000)
    held = room.arrive("new", prompt=prompt("new", 110_000))
    assert kinds(held) == ["Admit", "Hold"] and "paused" in held[1].because.reason
    assert placed(room.wake(room.now_s + 1.0)) == []
    assert placed(room.close("p1")) == ["new"]


def test_the_buffer_counts_for_each_program():
    room = acting("thunderagent", 200_000, 200_000)
    free = 500_000 - 2 * (200_000 + 100 + 100)  # each context has 100 tokens of output, and a buffer of 100
    tail = free - 99_000 - 100 - 100  # and so has the new one
    assert kinds(room.arrive("over", prompt=prefix(("over", 99_000), tail=tail + 1, block=BLOCK)))[1] == "Hold"
    assert kinds(room.arrive("exact", prompt=prefix(("exact", 99_000), tail=tail, block=BLOCK)))[1] == "Dispatch"


def test_acting_programs_are_paused_smallest_first_when_contexts_outgrow_the_memory():
    room = acting("thunderagent", 150_000, 100_000, 200_000)
    assert kinds(comes_back(room, 2, 280_000)) == ["Dispatch"]  # it grew by 80 K: 530 K together
    room.first_token("2.2")
    assert kinds(room.arrive("new", prompt=prompt("new", 200_000))) == ["Admit", "Hold"]
    assert kinds(comes_back(room, 1, 101_000)) == ["Hold"], "the smallest is paused"
    assert kinds(comes_back(room, 0, 151_000)) == ["Dispatch"], "the larger one was not"
    assert placed(room.finish("2.2", prompt=280_000)) == [], "it acts now, and counts as before"
    assert placed(room.close("p2")) == ["1.2", "new"], "who has run before goes before a larger new one"


def test_a_paused_program_takes_no_room_back_until_its_next_call_is_sent():
    room = acting("thunderagent", 150_000, 100_000, 200_000)
    comes_back(room, 2, 280_000)
    room.arrive("new", prompt=prompt("new", 200_000))  # this look pauses p1
    assert placed(room.close("p0")) == ["new"], "280 K and 200 K; p1 would not have let it in"
    room.close("p2")
    room.close("new")
    assert kinds(comes_back(room, 1, 101_000)) == ["Dispatch"]
    lanes = room.fabric.book.lanes
    assert not lanes.get("p1", "m").paused


def test_who_acts_since_the_last_tick_only_is_not_paused():
    room = acting("thunderagent", 150_000, 100_000, 200_000)
    room.now_s = 5.0 * (room.now_s // 5.0 + 1.0) + 1.0
    comes_back(room, 1, 101_000)
    room.finish("1.2", prompt=101_000)
    comes_back(room, 2, 280_000)
    room.arrive("new", prompt=prompt("new", 250_000))
    assert kinds(comes_back(room, 1, 102_000)) == ["Dispatch"]
    assert kinds(comes_back(room, 0, 151_000)) == ["Hold"]


def test_a_paused_program_resumes_where_most_room_is():
    room = acting("thunderagent", 200_000, 250_000)
    assert kinds(comes_back(room, 1, 320_000)) == ["Dispatch"]
    assert kinds(room.arrive("new", prompt=prompt("new", 190_000))) == ["Admit", "Hold"]
    assert kinds(comes_back(room, 0, 201_000)) == ["Hold"]
    assert placed(room.join("v")) == ["0.2", "new"]
    assert room.fabric.book.pipelines.call("0.2").worker == "v"


def test_a_program_is_not_paused_inside_a_step():
    room = acting("thunderagent", 450_000)
    assert kinds(comes_back(room, 0, 480_000)) == ["Dispatch"]
    assert kinds(room.arrive("0.3", "p0", prompt("p0", 100_000))) == ["Dispatch"]


@pytest.mark.parametrize(
    ("policy", "order"),
    [("thunderagent", ["0.2", "big", "small"]), ("thunderagent-fcfs", ["small", "0.2", "big"])],
)
def test_resume_order_is_best_fit_decreasing_as_published_and_arrival_as_strengthened(policy: str, order: list[str]):
    room = acting(policy, 20_000, 300_000)
    assert kinds(comes_back(room, 1, 485_000)) == ["Dispatch"]
    for call, run, tokens in (("small", "small", 40_000), ("0.2", "p0", 45_000), ("big", "big", 60_000)):
        room.now_s += 1.0
        assert "Hold" in kinds(room.arrive(call, run, prompt(run, tokens)))
    room.now_s += 200.0
    room.first_token("1.2")
    assert placed(room.finish("1.2", prompt=485_000)) == []  # it acts and keeps its memory
    assert placed(room.close("p1")) == order


def test_a_paused_program_resumes_by_force_after_half_an_hour():
    room = acting("thunderagent", 200_000, 250_000)
    room.arrive("new", prompt=prompt("new", 110_000))
    assert placed(room.wake(room.now_s + 1_799.0)) == []
    forced = room.wake(room.now_s + 2.0)
    assert placed(forced) == ["new"]


def test_every_rival_is_a_bundle_beside_the_fabric():
    assert {*QUEUED, "dynamo-agentic", "llm-d", "thunderagent", "thunderagent-fcfs", "fabric"} <= set(BUNDLES)

"""Random pipelines of calls, groups and guesses, in every way and under several fabrics: each call ends once, each pipeline
completes, nothing is left behind, and what is wasted is what nobody used."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amf.core.decisions import Because, Decision, Refuse
from amf.core.events import CallArrived, Event
from amf.core.graph import GroupKind
from amf.sim.in_turn import in_turn, tried, used
from amf.sim.plan import AttemptPlan, PipelinePlan, Workload
from amf.sim.report import spent_tokens
from amf.sim.reuse import note_reuse
from speculating import WAYS, Heard, Sketch, play

KINDS = (GroupKind.FIRST_SUCCESS, GroupKind.BEST_OF, GroupKind.QUORUM)
OUTPUTS = st.sampled_from((1, 20, 150, 900))
SECONDS = st.sampled_from((0.0, 0.3, 4.0))


@st.composite
def plans(draw: st.DrawFn, name: str = "g/0") -> PipelinePlan:
    """Stages one after another: a call, a call that is guessed while the one before runs, or a group."""
    sketch = Sketch(name)
    tails: list[tuple[int, ...]] = [(sketch.call("start", output=draw(OUTPUTS)),)]
    plain = [True]
    for stage in range(draw(st.integers(1, 5))):
        what = draw(st.sampled_from(("call", "guess", "group")))
        if what == "group":
            tails.append(_group(draw, sketch, f"s{stage}", tails[-1]))
        else:
            tails.append((sketch.call(f"s{stage}", *tails[-1], output=draw(OUTPUTS), gap_s=draw(SECONDS)),))
        if what == "guess" and plain[-1]:
            (call,), (until,) = tails[-1], tails[-2]
            wrong = () if draw(st.booleans()) else (sketch.call(f"s{stage}", until, output=draw(OUTPUTS)),)
            sketch.guess(call, until, after=tails[-3] if plain[-2:-1] == [True] else (), wrong=wrong)
        plain.append(what != "group")
    return sketch.plan()


def _group(draw: st.DrawFn, sketch: Sketch, name: str, parents: tuple[int, ...]) -> tuple[int, ...]:
    kind = draw(st.sampled_from(KINDS))
    attempts: list[AttemptPlan] = []
    for number in range(draw(st.integers(1, 4))):
        calls = [sketch.call(f"{name}-{number}", *parents, output=draw(OUTPUTS))]
        for more in range(draw(st.integers(0, 2))):
            calls.append(sketch.call(f"{name}-{number}-{more}", calls[-1], output=draw(OUTPUTS), gap_s=draw(SECONDS)))
        score, good = draw(st.floats(0, 1)), draw(st.booleans())
        attempts.append(AttemptPlan(calls=tuple(calls), succeeds=good, test_s=draw(SECONDS), score=score))
    k = draw(st.integers(1, len(attempts))) if kind is GroupKind.QUORUM else 1
    sketch.group(kind, attempts, name=name, k=k)
    return tuple(attempt.calls[-1] for attempt in attempts)


class Whimsical(Heard):
    """Ends every third call of a branch at its arrival."""

    def __init__(self, policy: str) -> None:
        super().__init__(policy)
        self.ended = 0

    def handle(self, event: Event) -> list[Decision]:
        if isinstance(event, CallArrived) and event.call.branch:
            self.ended += 1
            if self.ended % 3 == 0:
                because = Because(reason="a whim")
                return [Refuse(call_id=event.call.call_id, code="branch_cancelled", message="", because=because)]
        return super().handle(event)


@pytest.mark.parametrize("fabric", [Heard, Whimsical])
@pytest.mark.parametrize("policy", ["fabric", "fabric-kill", "round-robin"])
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_every_call_ends_once_and_every_pipeline_completes(fabric: type[Heard], policy: str, data: st.DataObject):
    mine = [data.draw(plans(f"g/{number}")) for number in range(data.draw(st.integers(1, 3)))]
    for way in WAYS:
        heard = fabric(policy)
        records, _ = play(way, mine, heard)
        assert {each.status for each in records.pipelines} == {"completed"}
        assert heard.totals()["live_calls"] == 0
        played = {plan.pipeline_id: in_turn(plan) if way == "off" else plan for plan in mine}
        for each in records.pipelines:
            _check(way, played[each.pipeline], each.unused, Counter(_statuses(records.calls, each.pipeline)))
        note_reuse(Workload(name="w", pipelines=tuple(played.values())), records)
        for call in records.calls:
            assert 0 <= call.reused_tokens <= spent_tokens(call)
            assert call.status in ("ok", "cancelled") and call.start_s <= call.end_s
            assert call.status == "ok" or call.spent_tokens <= 48 * 16 + 900


def _statuses(calls, pipeline: str):
    return [(call.index, call.status) for call in calls if call.pipeline == pipeline]


def _check(way: str, plan: PipelinePlan, unused: frozenset[int], ended: Counter) -> None:
    """Who has an answer: all that is used; in turn everything, and of nothing two. In a group as many are used as were wanted
    and succeeded, or else the best."""
    answered = {index for index, status in ended if status == "ok"}
    assert all(times == 1 for (_, status), times in ended.items() if status == "ok"), "an answer twice"
    in_groups = {call for group in plan.groups for attempt in group.attempts for call in attempt.calls}
    wrong = {call for guess in plan.guesses for call in guess.wrong}
    assert {call.index for call in plan.calls} - in_groups - wrong <= answered
    if way == "off":
        assert answered == {call.index for call in plan.calls} and not wrong and not in_groups
        return
    assert unused <= in_groups | wrong
    for group in plan.groups:
        good = [attempt for attempt in group.attempts if attempt.succeeds]
        taken = [attempt for attempt in group.attempts if unused.isdisjoint(attempt.calls)]
        best = used(group, group.attempts)
        assert len(taken) == (len(best) if group.kind is GroupKind.BEST_OF else min(len(good), group.k))
        assert all(answered.issuperset(attempt.calls) for attempt in taken)
        assert good == [] or all(attempt.succeeds for attempt in taken)


@given(plan=plans())
def test_in_turn_is_a_plain_plan_of_what_is_needed(plan: PipelinePlan):
    plain = in_turn(plan)
    assert not plain.groups and not plain.guesses
    assert [call.index for call in plain.calls] == list(range(len(plain.calls)))
    assert all(parent < call.index for call in plain.calls for parent in call.parents)
    prompts = {(call.hop, call.prompt) for call in plan.calls}
    assert {(call.hop, call.prompt) for call in plain.calls} <= prompts
    tests_s = sum(attempt.test_s for group in plan.groups for attempt in tried(group))
    gaps_s = sum(call.gap_s for call in plain.calls)
    assert gaps_s <= sum(call.gap_s for call in plan.calls) + tests_s + 1e-9
    made = {call for group in plan.groups for attempt in tried(group) for call in attempt.calls}
    tried_in_vain = sum(
        len(attempt.calls)
        for group in plan.groups
        for attempt in tried(group)
        if not any(attempt is each for each in used(group, tried(group)))
    )
    assert len(plain.unused) == tried_in_vain <= len(made)

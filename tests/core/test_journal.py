"""Events and decisions survive the journey through JSON unchanged; what no event could have written is refused by name."""

import json
from dataclasses import replace
from math import inf

import pytest

from amf.core import decisions as decisions_module
from amf.core import events as events_module
from amf.core.decisions import Because, Dispatch, Hold, Price
from amf.core.events import CallArrived, Event, GraphDeclared, PrefixStored, WorkerJoined
from amf.core.graph import graph_from_dict
from amf.core.journal import (
    JournalError,
    decision_from_dict,
    decision_to_dict,
    event_from_dict,
    event_to_dict,
)
from amf.core.types import Call, CallKind, SloClass, Tier
from kit import Room, prefix, worker

GRAPH = graph_from_dict({"name": "g", "hops": {"a": {"model": "m"}, "b": {"model": "m", "after": ["a"]}}})
CALL = Call(
    call_id="c", run_id="r", pool="m", kind=CallKind.RERANK, prefix=prefix(("a", 64), tail=3), deadline_s=1.5,
    slo_class=SloClass.BACKGROUND, parents=("x", "y"), streams=False,
)  # fmt: skip
EVENTS = [
    CallArrived(at_s=0.5, call=CALL),
    GraphDeclared(at_s=0.0, graph=GRAPH),
    WorkerJoined(at_s=1.0, worker=worker("w", attributes=(("zone", "a"),))),
    PrefixStored(at_s=2.0, name="w", keys=(1, 2**64 - 1), tier=Tier.DRAM, evicted=(3,)),
]
DECISIONS = [
    Dispatch(
        call_id="c", worker="w", attempt=2, urgency_s=-3.25, hit_tokens=7, budget_s=None, slack_s=0.1,
        because=Because(reason="why", alternatives=(Price(worker="v", total_s=inf, note="protected"),)),
    ),
    Hold(call_id="c", because=Because(reason="full")),
]  # fmt: skip


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_events_survive_json(event: Event):
    assert event_from_dict(json.loads(json.dumps(event_to_dict(event), allow_nan=False))) == event


@pytest.mark.parametrize("decision", DECISIONS, ids=lambda decision: type(decision).__name__)
def test_decisions_survive_json(decision):
    assert decision_from_dict(json.loads(json.dumps(decision_to_dict(decision), allow_nan=False))) == decision


@pytest.mark.parametrize(
    ("record", "word"),
    [
        ({"type": "Nonsense", "at_s": 0}, "Nonsense"),
        ({"type": "Woke", "at_s": 0, "extra": 1}, "extra"),
        ({"type": "FirstToken", "at_s": 0}, "call_id"),
        ({"type": "Dispatch", "at_s": 0}, "Dispatch"),
    ],
)
def test_a_record_no_event_wrote_is_refused_by_name(record: dict, word: str):
    with pytest.raises(JournalError, match=word):
        event_from_dict(record)


def test_every_event_and_decision_has_a_name_of_its_own():
    events = [name for name, kind in vars(events_module).items() if isinstance(kind, type) and issubclass(kind, Event)]
    kinds = [name for name, kind in vars(decisions_module).items() if isinstance(kind, type)]
    assert not set(events) & set(kinds)


def test_a_replayed_room_decides_the_same_and_a_changed_one_does_not():
    room = Room(workers=("w1", "w2", "w3"))
    for number in range(12):
        room.now_s += 1.0
        room.serve(f"c{number}", f"r{number % 4}", prefix((f"r{number % 4}", 2_000 + 100 * number)))
    records = json.loads(json.dumps(room.records))

    def replayed(**changes: object) -> list[object]:
        again = Room(workers=()).fabric.__class__(replace(room.fabric.config, **changes), room.fabric.policies)
        return [[decision_to_dict(d) for d in again.handle(event_from_dict(record["event"]))] for record in records]

    assert replayed() == [record["decisions"] for record in records]
    assert replayed(max_alternatives=1) != [record["decisions"] for record in records]

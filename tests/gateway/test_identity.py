"""The identity ladder: what each source says, which one wins, and what is turned away."""

import msgspec
import pytest
from multidict import CIMultiDict

from amf.core.types import SloClass
from amf.gateway.body import parse_body
from amf.gateway.identity import Identity, read_identity
from amf.gateway.problem import Problem
from amf.gateway.slo import Wishes
from amf.gateway.tracecontext import baggage, trace_id

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7"


def read(headers: dict[str, str] | None = None, **body: object) -> Identity:
    return read_identity(CIMultiDict(headers or {}), parse_body(msgspec.json.encode({"model": "m", **body})))


# Every rung with what it gives, best first: (headers, body, source, run).
LADDER = [
    ({"x-amf-run-id": "r1", "x-amf-session-id": "s1"}, {}, "explicit", "r1"),
    ({"baggage": "amf.run=r2,gen_ai.conversation.id=c2"}, {}, "baggage", "r2"),
    ({"X-Dynamo-Session-Id": "d1"}, {}, "dynamo", "d1"),
    ({"X-Claude-Code-Session-Id": "cc1", "x-claude-code-agent-id": "a1"}, {}, "claude-code", "cc1"),
    ({"thread_id": "t1"}, {}, "codex", "t1"),
    ({"session-id": "s2"}, {}, "session-id", "s2"),
    ({"x-session-id": "s3"}, {}, "x-session-id", "s3"),
    ({"x-session-affinity": "s4"}, {}, "x-session-affinity", "s4"),
    ({"litellm_session_id": "s5"}, {}, "litellm", "s5"),
    ({"Helicone-Session-Id": "s6"}, {}, "helicone", "s6"),
    ({"X-SMG-Routing-Key": "s7"}, {}, "routing-key", "s7"),
    ({}, {"session_id": "b1"}, "body:session_id", "b1"),
    ({}, {"conversation": {"id": "b2"}}, "body:conversation", "b2"),
    ({}, {"metadata": {"user_id": '{"session_id": "b3"}'}}, "body:metadata.user_id", "b3"),
    ({}, {"prompt_cache_key": "b4"}, "body:prompt_cache_key", "b4"),
    ({"traceparent": PARENT + "-03"}, {}, "traceparent", TRACE),
    ({}, {}, "derived", ""),
]


@pytest.mark.parametrize("rung", range(len(LADDER)), ids=[rung[2] for rung in LADDER])
def test_each_rung_is_read_and_beats_all_below(rung: int) -> None:
    headers: dict[str, str] = {}
    body: dict[str, object] = {}
    for more_headers, more_body, _, _ in reversed(LADDER[rung:]):
        headers |= more_headers
        body |= more_body
    identity = read(headers, **body)
    assert (identity.source, identity.run_id) == LADDER[rung][2:]


def test_body_and_headers_make_one_explicit_identity() -> None:
    amf = {"pipeline": "coding", "run_id": "r", "parents": ["plan", "find"], "deadline_ms": 4000, "final": True}
    identity = read({"x-amf-hop": "code", "x-amf-branch": "g/a", "x-amf-slo-class": "background"}, amf=amf)
    assert identity == Identity(
        source="explicit",
        names_graph=True,
        run_id="r",
        session_id="r",
        graph="coding",
        hop="code",
        parents=("plan", "find"),
        branch="g/a",
        wishes=Wishes(deadline_ms=4000.0, slo_class=SloClass.BACKGROUND),
        final=True,
    )


def test_the_same_thing_may_be_said_twice() -> None:
    amf = {"run_id": "r", "deadline_ms": 4000, "final": True}
    identity = read({"x-amf-run-id": "r", "x-amf-deadline-ms": "4000.0", "x-amf-final": "TRUE"}, amf=amf)
    assert (identity.run_id, identity.wishes.deadline_ms, identity.final) == ("r", 4000.0, True)


def test_metadata_carries_identity() -> None:
    identity = read(metadata={"amf_run_id": "r", "amf_hop": "plan", "other": "x"})
    assert (identity.source, identity.run_id, identity.hop) == ("explicit", "r", "plan")


def test_sub_agents_name_their_family() -> None:
    child = read(
        {"x-dynamo-session-id": "child", "x-dynamo-parent-session-id": "root", "x-dynamo-session-final": "true"}
    )
    assert (child.run_id, child.session_id, child.parent_session_id, child.final) == ("root", "child", "root", True)
    agent = read({"x-claude-code-session-id": "s", "x-claude-code-agent-id": "a"})
    assert (agent.run_id, agent.session_id) == ("s", "a")


@pytest.mark.parametrize(
    ("headers", "amf", "code"),
    [
        ({"x-amf-run-id": "a"}, {"run_id": "b"}, "contradictory_identity"),
        ({"x-amf-deadline-ms": "1000"}, {"deadline_ms": 2000}, "contradictory_identity"),
        ({"x-amf-parents": "plan"}, {}, "parents_without_run"),
        ({"x-amf-parents": "plan", "x-amf-session-id": "s"}, {}, "parents_without_run"),
        ({"x-amf-run-id": "r", "x-amf-hop": "a", "x-amf-parents": "b|a"}, {}, "cyclic_parents"),
        ({"x-amf-deadline-ms": "0"}, {}, "invalid_deadline"),
        ({"x-amf-deadline-ms": "-5"}, {}, "invalid_deadline"),
        ({"x-amf-deadline-ms": "soon"}, {}, "invalid_deadline"),
        ({"x-amf-deadline-ms": "nan"}, {}, "invalid_deadline"),
        ({"x-amf-deadline-ms": "inf"}, {}, "invalid_deadline"),
        ({}, {"deadline_ms": -1}, "invalid_deadline"),
        ({"x-amf-slo-class": "urgent"}, {}, "invalid_slo_class"),
        ({"x-amf-branch": "alone"}, {}, "invalid_branch"),
        ({"x-amf-branch": "g/"}, {}, "invalid_branch"),
        ({"x-amf-final": "maybe"}, {}, "invalid_flag"),
        ({"x-amf-run-id": "r" * 257}, {}, "invalid_identity"),
    ],
)
def test_what_cannot_be_is_turned_away(headers: dict[str, str], amf: dict[str, object], code: str) -> None:
    with pytest.raises(Problem) as caught:
        read(headers, amf=amf)
    assert (caught.value.status, caught.value.code) == (400, code)


def test_hints_that_cannot_be_ids_are_ignored() -> None:
    assert read({"x-session-id": "x" * 300}).run_id == ""
    assert read(session_id=12).source == "derived"
    assert read(metadata={"user_id": "user_9_account__session_0e4c1b2a-1111"}).run_id == "0e4c1b2a-1111"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (PARENT + "-00", TRACE),
        (PARENT + "-03", TRACE),
        (PARENT + "-ff", TRACE),
        ("cc" + PARENT[2:] + "-01-what-the-future-brings", TRACE),
        (PARENT + "-01-more", None),
        ("ff" + PARENT[2:] + "-01", None),
        (PARENT.upper() + "-01", None),
        ("00-" + "0" * 32 + "-00f067aa0ba902b7-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        ("nonsense", None),
        ("", None),
    ],
)
def test_traceparent(header: str, expected: str | None) -> None:
    assert trace_id(header) == expected


def test_baggage_is_decoded_and_bounded() -> None:
    assert baggage("a=1, b = x%20y;prop=1,broken,a=2,=3") == {"a": "1", "b": "x y"}
    assert baggage("a=" + "x" * 9000) == {}

"""Whatever is sent, intake either accepts it or turns it away with a Problem, and forwards what it accepts."""

import asyncio
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from amf.config import SloConfig
from amf.core.types import CallKind
from amf.gateway.clock import Clock
from amf.gateway.derive import DerivedRuns
from amf.gateway.graphs import Graphs
from amf.gateway.intake import Accepted, Inbound, Intake
from amf.gateway.metrics import Metrics
from amf.gateway.pools import Pools
from amf.gateway.problem import Problem
from amf.gateway.promises import Promises

ROUTES = {
    "/v1/chat/completions": CallKind.GENERATE,
    "/v1/completions": CallKind.GENERATE,
    "/v1/embeddings": CallKind.EMBED,
    "/v1/rerank": CallKind.RERANK,
}
FIELDS = ("messages", "prompt", "input", "query", "documents", "tools", "stream", "max_tokens", "amf", "priority", "metadata",
          "session_id", "conversation", "prompt_cache_key", "cache_salt", "service_tier", "n")  # fmt: skip
HEADERS = ("x-amf-run-id", "x-amf-hop", "x-amf-parents", "x-amf-deadline-ms", "x-amf-final", "baggage", "traceparent",
           "thread-id", "x-dynamo-session-id", "x-dynamo-parent-session-id", "grpc-timeout", "x-litellm-timeout",
           "x-slo-ttft-ms", "x-amf-slo-class", "x-amf-branch", "x-amf-commit")  # fmt: skip

texts = st.text(max_size=30)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
message = st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": texts})
branched = st.fixed_dictionaries(
    {"run_id": st.just("r")}, optional={name: values for name in ("branch", "commit", "discard")}
)
bodies = st.fixed_dictionaries(
    {"model": st.sampled_from(["m", "m", "m", "other", 5])},
    optional={name: values for name in FIELDS}
    | {"amf": branched | values, "messages": st.lists(message, max_size=5) | values},
)
ascii_texts = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
headers = st.dictionaries(st.sampled_from(HEADERS), ascii_texts | st.sampled_from(["true", "1", "50m", "a|b", "0.5"]))


def make_intake() -> Intake:
    pools = Pools()
    pools.enlist("w", "m", ["m"], 16)
    clock = Clock()
    promises = Promises(SloConfig(), clock, Metrics().slo, lambda run_id: False)
    return Intake(pools, Graphs(), clock, DerivedRuns(), lambda run_id: (), promises)


def accept(intake: Intake, path: str, raw: bytes, sent: dict[str, str]) -> Accepted | Problem:
    inbound = Inbound(path=path, kind=ROUTES[path], headers=CIMultiDict(sent))
    try:
        return asyncio.run(intake.accept(inbound, raw))
    except Problem as problem:
        return problem


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(ROUTES)), bodies, headers)
def test_every_json_body_is_accepted_or_turned_away(path: str, body: dict[str, Any], sent: dict[str, str]) -> None:
    raw = json.dumps(body).encode()
    result = accept(make_intake(), path, raw, sent)
    if isinstance(result, Problem):
        assert result.status in (400, 404, 504) and result.message
        return
    prefix = result.call.prefix
    assert len(prefix.keys) == len(prefix.ends)
    assert all(a < b for a, b in zip(prefix.ends, list(prefix.ends)[1:], strict=False))
    assert not prefix.ends or prefix.ends[-1] <= prefix.total_tokens
    kept = {name: value for name, value in body.items() if name not in ("amf", "priority")}
    assert json.loads(result.body) == kept
    if kept == body:
        assert result.body is raw


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=40).map(str.encode))
def test_bytes_that_are_no_json_are_turned_away(raw: bytes) -> None:
    result = accept(make_intake(), "/v1/chat/completions", raw, {})
    assert isinstance(result, Problem) and result.status in (400, 404)


@settings(max_examples=50, deadline=None)
@given(st.lists(texts, min_size=1, max_size=4), st.lists(texts, min_size=2, max_size=4))
def test_a_conversation_that_grows_stays_one_run_with_one_growing_prefix(first: list[str], more: list[str]) -> None:
    intake = make_intake()

    def turn(contents: list[str]) -> Accepted:
        turns = [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(contents)]
        result = accept(intake, "/v1/chat/completions", json.dumps({"model": "m", "messages": turns}).encode(), {})
        assert isinstance(result, Accepted)
        return result

    one, two = turn(first), turn(first + more)
    assert one.call.run_id == two.call.run_id
    assert two.call.prefix.keys[: len(one.call.prefix.keys)] == one.call.prefix.keys

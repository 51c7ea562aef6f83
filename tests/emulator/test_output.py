import json
import random
from itertools import pairwise
from typing import Any

import pytest

from amf.emulator.chat import render_chat
from amf.emulator.errors import ApiError
from amf.emulator.output import Output, Wish, plan_chat, plan_text
from amf.emulator.protocol import CalledFunction, ChatBody, Function, GenerationBody, Message, Tool, ToolCall
from amf.emulator.schema import sample
from amf.emulator.tokenizer import decode

PLAIN = GenerationBody()
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
    "required": ["city"],
}


def wish(limit: int, **fields: Any) -> Wish:
    return Wish(limit_tokens=limit, **fields)


def ask(text: str, **fields: Any) -> ChatBody:
    tools = [Tool(function=Function(name=name, parameters=CITY)) for name in ("forecast", "travel")]
    return ChatBody(messages=[Message(role="user", content=text)], tools=tools, **fields)


def test_same_seed_same_text_and_other_seed_other_text():
    first, again, other = (plan_text(PLAIN, wish(500), seed) for seed in (1, 1, 2))
    assert first == again
    assert first.shown != other.shown


def test_the_draw_has_the_stated_median():
    lengths = sorted(plan_text(PLAIN, wish(100_000), seed).tokens for seed in range(400))
    assert 170 < lengths[200] < 235
    assert lengths[0] < 60 < 600 < lengths[-1]


@pytest.mark.parametrize(
    ("asked", "tokens", "reason"),
    [
        (wish(7, ignore_eos=True), 7, "length"),
        (wish(9, min_tokens=9), 9, "length"),
        (wish(3), 3, "length"),
        (wish(1000, exact_tokens=41), 41, "stop"),
        (wish(10, exact_tokens=41), 10, "length"),
        (wish(5000, min_tokens=4000, exact_tokens=1), 4000, "stop"),
    ],
)
def test_lengths(asked: Wish, tokens: int, reason: str):
    output = plan_text(PLAIN, asked, seed=5)
    assert (output.tokens, output.finish_reason) == (tokens, reason)
    assert len(output.shown) == 4 * tokens
    assert decode(output.content) == output.shown


def test_a_stop_string_cuts_at_its_first_occurrence():
    whole = plan_text(PLAIN, wish(200, ignore_eos=True), seed=1).shown
    stop = whole[101:107]
    cut = plan_text(PLAIN, wish(200, ignore_eos=True, stops=("never there", stop)), seed=1)
    assert cut.shown == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"
    assert cut.tokens == -(-(whole.index(stop) + len(stop)) // 4)
    late = plan_text(PLAIN, wish(200, ignore_eos=True, stops=(" ",), min_tokens=50), seed=1)
    assert late.tokens >= 50 and late.finish_reason == "stop"


def test_what_is_shown_grows_with_the_tokens():
    for output in (plan_text(PLAIN, wish(40), seed=1), plan_chat(ask("", tool_choice="required"), wish(99), seed=1)):
        lengths = [output.shown_at(tokens) for tokens in range(output.tokens + 1)]
        assert lengths[0] == 0 and lengths[-1] == len(output.shown)
        assert all(0 <= b - a <= 4 for a, b in pairwise(lengths[:-1]))


def test_json_mode_gives_json_and_fills_up_with_blanks():
    body = GenerationBody(response_format={"type": "json_object"})
    assert isinstance(json.loads(plan_text(body, wish(500), seed=1).shown), dict)
    padded = plan_text(body, wish(80, ignore_eos=True), seed=1)
    assert padded.tokens == 80 and json.loads(padded.shown)
    assert plan_text(body, wish(2), seed=1).finish_reason == "length"


def test_json_schema():
    schema = {"type": "json_schema", "json_schema": {"name": "trip", "schema": CITY}}
    answer = json.loads(plan_text(GenerationBody(response_format=schema), wish(500), seed=1).shown)
    assert set(answer) == {"city", "days"} and 1 <= answer["days"] <= 7
    with pytest.raises(ApiError, match="yaml"):
        plan_text(GenerationBody(response_format={"type": "yaml"}), wish(500), seed=1)


@pytest.mark.parametrize(
    ("text", "choice", "called"),
    [
        ("hello", None, None),
        ("please use forecast for Rome", None, "forecast"),
        ("Use the travel tool", "auto", "travel"),
        ("I am useful to travel agents", "auto", None),
        ("use forecast", "none", None),
        ("hello", "required", "forecast"),
        ("use travel", "required", "travel"),
        ("hello", {"type": "function", "function": {"name": "travel"}}, "travel"),
    ],
)
def test_when_a_tool_is_called(text: str, choice: Any, called: str | None):
    output = plan_chat(ask(text, tool_choice=choice), wish(500), seed=1)
    assert output.tool == called
    if called:
        assert output.finish_reason == "tool_calls"
        assert set(json.loads(output.shown)) == {"city", "days"}


def test_a_tool_call_sent_back_has_the_tokens_it_was_generated_with():
    body = ask("use forecast")
    output = plan_chat(body, wish(500), seed=1)
    call = ToolCall(id="x", function=CalledFunction(name="forecast", arguments=output.shown))
    again = [*body.messages, Message(role="assistant", tool_calls=[call])]
    assert body.tools is not None
    assert render_chat(again, body.tools).startswith(render_chat(body.messages, body.tools) + output.content)


def test_a_tool_call_cut_short_is_no_call_that_ended():
    output = plan_chat(ask("use forecast"), wish(10), seed=1)
    assert (output.tokens, output.finish_reason) == (10, "length")


@pytest.mark.parametrize("choice", ["sometimes", {"type": "function", "function": {"name": "unknown"}}])
def test_a_wrong_tool_choice_is_refused(choice: Any):
    with pytest.raises(ApiError):
        plan_chat(ask("hi", tool_choice=choice), wish(500), seed=1)


@pytest.mark.parametrize(
    ("schema", "check"),
    [
        ({"enum": ["a", "b"]}, lambda v: v in ("a", "b")),
        ({"const": 5}, lambda v: v == 5),
        ({"type": ["null", "integer"], "exclusiveMinimum": 3, "maximum": 4}, lambda v: v == 4),
        ({"type": "number", "minimum": -1, "maximum": -0.5}, lambda v: -1 <= v <= -0.5),
        ({"type": "integer", "maximum": -5}, lambda v: isinstance(v, int) and v <= -5),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 3}, lambda v: len(v) >= 3 and {*v} <= {True, False}),
        ({"type": "array", "maxItems": 0}, lambda v: v == []),
        ({"anyOf": [{"type": "null"}, {"type": "boolean"}]}, lambda v: isinstance(v, bool)),
        ({"allOf": [{"properties": {"a": {"const": 1}}}, {"properties": {"b": {"const": 2}}}]}, lambda v: v["a"] < v["b"]),
        ({"$ref": "#/$defs/N", "$defs": {"N": {"type": "null"}}}, lambda v: v is None),
        ({"type": "string", "maxLength": 3}, lambda v: len(v) <= 3),
        ({"type": "string", "minLength": 90}, lambda v: len(v) >= 90),
        ({"type": "object", "required": ["x"]}, lambda v: set(v) == {"x"}),
        ({}, lambda v: isinstance(v, str)),
    ],
)  # fmt: skip
def test_samples_fit_their_schema(schema: dict[str, Any], check: Any):
    for seed in range(20):
        value = sample(schema, random.Random(seed))
        assert check(value), value


def test_a_recursive_schema_ends_where_it_may_and_is_refused_where_it_may_not():
    node: dict[str, Any] = {"type": "object", "properties": {"next": {"$ref": "#"}}}
    assert "next" in sample(node, random.Random(1))
    with pytest.raises(ApiError, match="nested"):
        sample({**node, "required": ["next"]}, random.Random(1))
    with pytest.raises(ApiError, match="without end"):
        sample({"$ref": "#"}, random.Random(1))
    with pytest.raises(ApiError, match="Missing"):
        sample({"$ref": "#/$defs/Missing"}, random.Random(1))


def test_output_counts_its_own_tokens():
    assert Output(content=b"abcdefgh", shown="abcdefgh", finish_reason="stop").tokens == 2

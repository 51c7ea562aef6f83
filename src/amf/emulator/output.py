"""What the emulated model will say, planned whole before the first token is due.

The output is deterministic: the same prompt, seed and index give the same text. Its length is `x-emulate-output-tokens` if
that header is sent, else a log-normal draw with a median of 200 tokens; `min_tokens` raises it, `max_tokens` cuts it
(finish reason `length`), `ignore_eos` makes it last until `max_tokens`. Structured answers (JSON, tool calls) are as long
as they are and are filled up with blanks where more tokens are asked for.

A tool is called when `tool_choice` demands it; with `auto`, when the last message is the user's and contains the word
"use" and the name of a tool (the first tool named so is called). So a user can steer a demo in plain words, and a
framework's loop ends when the tool's result comes back.
"""

import math
import random
import re
from dataclasses import dataclass
from typing import Any

from amf.emulator.chat import call_text, canonical, content_text
from amf.emulator.errors import MALFORMED, ApiError
from amf.emulator.protocol import ChatBody, Function, GenerationBody
from amf.emulator.schema import sample
from amf.emulator.tokenizer import BYTES_PER_TOKEN, count, encode
from amf.emulator.words import filler

MEDIAN_TOKENS = 200
SIGMA = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a request asks of its output's length and end. `exact_tokens` replaces the draw."""

    limit_tokens: int
    min_tokens: int = 0
    exact_tokens: int | None = None
    ignore_eos: bool = False
    stops: tuple[str, ...] = ()

    def reach(self, natural_tokens: int) -> int:
        """How far the model would go if nothing but `limit_tokens` stopped it."""
        wanted = max(natural_tokens, self.min_tokens)
        return max(wanted, self.limit_tokens) if self.ignore_eos else wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """`content` are all generated tokens. The client sees `shown`, which lies `shown_from` bytes into them."""

    content: bytes
    shown: str
    finish_reason: str
    shown_from: int = 0
    tool: str | None = None

    @property
    def tokens(self) -> int:
        return count(self.content)

    def shown_at(self, tokens: int) -> int:
        """How many characters of `shown` the first `tokens` tokens cover."""
        if tokens >= self.tokens:
            return len(self.shown)
        return min(len(self.shown), max(0, tokens * BYTES_PER_TOKEN - self.shown_from))


def plan_chat(body: ChatBody, wish: Wish, seed: int) -> Output:
    """Raises ApiError (400) for a `tool_choice` that names no tool and for schemas that cannot be followed."""
    tool = _wanted_tool(body)
    if tool is not None:
        return _tool_call(tool, wish, seed)
    return plan_text(body, wish, seed)


def plan_text(body: GenerationBody, wish: Wish, seed: int) -> Output:
    """Filler, or JSON if the response format asks for it. Raises ApiError (400) for an unknown response format."""
    schema = _response_schema(body.response_format)
    if schema is not None:
        text = canonical(sample(schema, random.Random(seed)))
        return _cut(text, wish, wish.reach(max(count(encode(text)), wish.exact_tokens or 0)))
    natural = wish.exact_tokens or round(random.Random(seed).lognormvariate(math.log(MEDIAN_TOKENS), SIGMA)) or 1
    reach = wish.reach(natural)
    return _cut(filler(seed, min(reach, wish.limit_tokens) * BYTES_PER_TOKEN), wish, reach)


def _cut(text: str, wish: Wish, reach_tokens: int) -> Output:
    """Apply the length limit, then the earliest stop string that ends after `min_tokens`."""
    tokens = min(reach_tokens, wish.limit_tokens)
    text = text.ljust(tokens * BYTES_PER_TOKEN)[: tokens * BYTES_PER_TOKEN]
    reason = "length" if reach_tokens >= wish.limit_tokens else "stop"
    first_end = wish.min_tokens * BYTES_PER_TOKEN
    hits = [(text.find(stop, max(0, first_end - len(stop) + 1)), len(stop)) for stop in wish.stops if stop]
    hits = sorted(hit for hit in hits if hit[0] >= 0)
    if not hits:
        return Output(content=encode(text), shown=text, finish_reason=reason)
    start, length = hits[0]
    end_tokens = -(-(start + length) // BYTES_PER_TOKEN)
    content = encode(text[: end_tokens * BYTES_PER_TOKEN])
    return Output(content=content, shown=text[:start], finish_reason="stop")


def _tool_call(function: Function, wish: Wish, seed: int) -> Output:
    arguments = canonical(sample(function.parameters or {"type": "object"}, random.Random(seed)))
    text = call_text([(function.name, arguments)])
    natural = max(count(encode(text)), wish.exact_tokens or 0)
    reach = wish.reach(natural)
    tokens = min(reach, wish.limit_tokens)
    content = encode(text).ljust(tokens * BYTES_PER_TOKEN)[: tokens * BYTES_PER_TOKEN]
    start = text.index('"arguments":') + len('"arguments":')
    shown = arguments[: max(0, tokens * BYTES_PER_TOKEN - start)]
    complete = shown == arguments
    return Output(
        content=content,
        shown=shown,
        shown_from=start,
        tool=function.name,
        finish_reason="tool_calls" if complete else "length",
    )


def _wanted_tool(body: ChatBody) -> Function | None:
    functions = [tool.function for tool in body.tools or ()]
    choice = body.tool_choice
    if isinstance(choice, dict):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        named = [function for function in functions if function.name == name]
        if not named:
            raise ApiError(400, f"tool_choice names {name!r}, which is not among the tools", param="tool_choice")
        return named[0]
    if choice not in (None, "none", "auto", "required"):
        raise ApiError(400, f"tool_choice must be none, auto, required or a function, not {choice!r}")
    if choice == "required" and not functions:
        raise ApiError(400, "tool_choice is required but no tools are given", param="tool_choice")
    if choice == "none" or not functions:
        return None
    return _mentioned(body, functions) or (functions[0] if choice == "required" else None)


def _mentioned(body: ChatBody, functions: list[Function]) -> Function | None:
    last = body.messages[-1]
    text = content_text(last)
    if last.role != "user" or not re.search(r"\buse\b", text, re.IGNORECASE):
        return None
    return next((function for function in functions if function.name in text), None)


def _response_schema(response_format: dict[str, Any] | None) -> dict[str, Any] | None:
    match (response_format or {}).get("type"):
        case None | "text":
            return None
        case "json_object":
            return {"type": "object", "properties": {"answer": {"type": "string"}, "confidence": {"type": "number"}}}
        case "json_schema":
            wrapper = (response_format or {}).get("json_schema")
            schema = wrapper.get("schema") if isinstance(wrapper, dict) else None
            return schema if isinstance(schema, dict) else {"type": "object"}
        case kind:
            raise ApiError(400, f"unknown response_format {kind!r}", param="response_format", kind=MALFORMED)

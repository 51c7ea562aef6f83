"""What one span says of a model call, by the OpenTelemetry conventions for generative AI (`gen_ai.*`), in their current
names and the older ones: is it one, of which model, how many tokens, which messages.

Without token counts lengths are estimated from the recorded text at four characters a token. Texts are only hashed: pieces
of PIECE_CHARS characters become a chain of keys, so that prompts share as far as their messages agree.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from amf.core.types import CallKind
from amf.sim.workload.otel_spans import Span

CHARS_PER_TOKEN = 4
PIECE_CHARS = 64
_CALLS = {
    "chat": CallKind.GENERATE,
    "text_completion": CallKind.GENERATE,
    "completion": CallKind.GENERATE,
    "generate_content": CallKind.GENERATE,
    "embeddings": CallKind.EMBED,
    "embedding": CallKind.EMBED,
    "rerank": CallKind.RERANK,
}
_MODEL = ("gen_ai.request.model", "gen_ai.response.model")
_INPUT_TOKENS = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens")
_OUTPUT_TOKENS = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens")
_BEFORE_MESSAGES = ("gen_ai.tool.definitions", "gen_ai.system_instructions")
_INPUT = ("gen_ai.input.messages", "gen_ai.prompt")
_OUTPUT = ("gen_ai.output.messages", "gen_ai.output.text", "gen_ai.completion")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanCall:
    """A span that is a model call. `messages`: the texts of its prompt in order; `said`: those of them that are answers;
    `answer`: the text of its own. `estimated`: a length was not recorded."""

    span: Span
    kind: CallKind
    model: str
    messages: tuple[str, ...]
    said: frozenset[str]
    answer: str
    prompt_tokens: int
    output_tokens: int
    estimated: bool


def call_of(span: Span) -> SpanCall | None:
    """None if the span is no model call. Raises ValueError if nothing tells how long its prompt is."""
    attributes = span.attributes
    operation = str(attributes.get("gen_ai.operation.name") or ("chat" if _is_old_call(attributes) else ""))
    model = _first(attributes, _MODEL)
    if operation not in _CALLS or model is None:
        return None
    kind = _CALLS[operation]
    asked = _messages(attributes, _INPUT, "gen_ai.prompt")
    answer = "".join(text for _, text in _messages(attributes, _OUTPUT, "gen_ai.completion"))
    head = [json.dumps(attributes[name]) for name in _BEFORE_MESSAGES if attributes.get(name)]
    texts = tuple([*head, *(f"{role}\x1f{text}" for role, text in asked)])
    prompt, output = _first(attributes, _INPUT_TOKENS), _first(attributes, _OUTPUT_TOKENS)
    if prompt is None and not texts:
        raise ValueError(f"has a call {span.span_id} with neither {_INPUT_TOKENS[0]} nor {_INPUT[0]}")
    if output is None and not answer and kind is CallKind.GENERATE:
        output = attributes.get("gen_ai.request.max_tokens")
        if output is None:
            raise ValueError(f"has a call {span.span_id} with neither {_OUTPUT_TOKENS[0]} nor {_OUTPUT[0]}")
    estimate = sum(map(len, texts)) // CHARS_PER_TOKEN
    answered = len(answer) // CHARS_PER_TOKEN if output is None else int(output)
    return SpanCall(
        span=span,
        kind=kind,
        model=str(model),
        messages=texts,
        said=frozenset(text for role, text in asked if role == "assistant" and text),
        answer=answer,
        prompt_tokens=max(1, estimate if prompt is None else int(prompt)),
        output_tokens=max(1, answered) if kind is CallKind.GENERATE else 0,
        estimated=prompt is None or (output is None and kind is CallKind.GENERATE),
    )


def pieces(texts: Sequence[str]) -> tuple[list[int], list[float]]:
    """The prompt as a chain: a key for each piece of each text, and its characters."""
    keys: list[int] = []
    sizes: list[float] = []
    parent = b""
    for text in texts:
        for start in range(0, len(text), PIECE_CHARS):
            piece = text[start : start + PIECE_CHARS]
            parent = blake2b(piece.encode("utf-8", "surrogatepass"), digest_size=8, key=parent).digest()
            keys.append(int.from_bytes(parent, "little"))
            sizes.append(float(len(piece)))
    return keys, sizes


def _is_old_call(attributes: Mapping[str, Any]) -> bool:
    """Older instrumentations name no operation but have a prompt or its length."""
    return any(name in attributes for name in (*_INPUT_TOKENS, *_INPUT, "gen_ai.prompt.0.content"))


def _first(attributes: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((attributes[name] for name in names if attributes.get(name) is not None), None)


def _messages(attributes: Mapping[str, Any], names: Sequence[str], indexed: str) -> list[tuple[str, str]]:
    """(role, text) of the messages in the first of `names` that is there, or in attributes numbered `indexed`.N."""
    value = _first(attributes, names)
    if value is None:
        return list(_numbered(attributes, indexed))
    if isinstance(value, str):
        value = _parsed(value)
    return [(_role(each), _text(each)) for each in (value if isinstance(value, list) else [value])]


def _parsed(text: str) -> Any:
    """The messages that are written in a text, or the text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    messages = value if isinstance(value, list) else [value]
    written = all(isinstance(each, Mapping) and each.keys() & {"role", "content", "parts"} for each in messages)
    return value if messages and written else text


def _numbered(attributes: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    number = 0
    while any(name.startswith(f"{prefix}.{number}.") for name in attributes):
        own = {name: value for name, value in attributes.items() if name.startswith(f"{prefix}.{number}.")}
        role = str(own.pop(f"{prefix}.{number}.role", ""))
        content = own.get(f"{prefix}.{number}.content")
        yield role, content if isinstance(content, str) and len(own) == 1 else json.dumps(own, sort_keys=True)
        number += 1


def _role(message: Any) -> str:
    return str(message.get("role", "")) if isinstance(message, Mapping) else ""


def _text(message: Any) -> str:
    """A message's text where it is nothing else; the whole of it, as JSON, where there is more (tool calls, images)."""
    if not isinstance(message, Mapping):
        return message if isinstance(message, str) else json.dumps(message, sort_keys=True)
    rest = {name: value for name, value in message.items() if name not in ("role", "finish_reason")}
    content = rest.pop("content", None) if "content" in rest else rest.pop("parts", None)
    if isinstance(content, list) and all(isinstance(part, Mapping) for part in content):
        texts = [part.get("content", part.get("text")) for part in content]
        plain = all(part.get("type", "text") == "text" for part in content)
        if plain and all(isinstance(text, str) for text in texts):
            content = "".join(texts)
    if isinstance(content, str) and not any(rest.values()):
        return content
    return json.dumps({name: value for name, value in message.items() if name != "finish_reason"}, sort_keys=True)

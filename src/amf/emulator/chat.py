"""The emulated model's chat template: each message is a role mark, its tokens and an end mark; then the assistant's mark.

Tool definitions go first, as a system part of their own. What an assistant called is written as one JSON array of
`{"name", "arguments"}` without ids, as common templates do, so a tool call sent back in the history is warm.
"""

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from amf.emulator.protocol import Message, Tool, ToolCall
from amf.emulator.tokenizer import encode, mark

_ROLES = {"system": 1, "developer": 1, "user": 2, "assistant": 3, "tool": 4, "function": 4}
_END = mark(0)
_ASSISTANT = mark(_ROLES["assistant"])
_TOOLS = mark(5)
_NAME = mark(6)
_CALL_ID = mark(7)
_ROLE = mark(8)


def render_chat(messages: Sequence[Message], tools: Sequence[Tool] = ()) -> bytes:
    """The prompt's tokens. A role that the template does not know is written out, as most templates do."""
    parts = [_TOOLS, encode(canonical(msgspec.to_builtins(tools))), _END] if tools else []
    for message in messages:
        role = _ROLES.get(message.role)
        parts.extend([mark(role)] if role is not None else [_ROLE, encode(message.role)])
        parts.extend(_body(message))
        parts.append(_END)
    parts.append(_ASSISTANT)
    return b"".join(parts)


def content_text(message: Message) -> str:
    """The message's text parts, joined."""
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    return "".join(part if isinstance(part, str) else str(part.get("text", "")) for part in message.content)


def call_text(calls: Sequence[tuple[str, str]]) -> str:
    """How (name, arguments) pairs are written by the model. The arguments are JSON text and stay as they are."""
    return "[" + ",".join(f'{{"name":{canonical(name)},"arguments":{arguments}}}' for name, arguments in calls) + "]"


def canonical(value: Any) -> str:
    """ASCII JSON with sorted keys and no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _body(message: Message) -> list[bytes]:
    parts = []
    if message.name:
        parts += [_NAME, encode(message.name)]
    if message.tool_call_id:
        parts += [_CALL_ID, encode(message.tool_call_id)]
    if isinstance(message.content, str):
        parts.append(encode(message.content))
    else:
        parts += [encode(_part_text(part)) for part in message.content or ()]
    if message.tool_calls:
        parts.append(encode(call_text([(call.function.name, _arguments(call)) for call in message.tool_calls])))
    return parts


def _part_text(part: str | dict[str, Any]) -> str:
    if isinstance(part, str):
        return part
    text = part.get("text")
    return text if isinstance(text, str) else canonical(part)


def _arguments(call: ToolCall) -> str:
    """Arguments in canonical JSON, so that a client which parsed and rewrote them changes no token."""
    arguments = call.function.arguments
    if isinstance(arguments, str):
        try:
            arguments = msgspec.json.decode(arguments) if arguments else {}
        except msgspec.DecodeError:
            return canonical(call.function.arguments)
    return canonical(arguments)

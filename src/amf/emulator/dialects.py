"""The two shapes of a generation's response: chat and plain completions, whole and streamed."""

import time
from collections.abc import Sequence
from typing import Any, Protocol

from amf.emulator.output import Output
from amf.emulator.ticket import Ticket


class Dialect(Protocol):
    """`text` is always a piece of `output.shown`."""

    def chunk(self, index: int, output: Output, text: str, *, first: bool, last: bool) -> list[dict[str, Any]]: ...

    def whole(self, outputs: Sequence[Output], usage: dict[str, Any]) -> dict[str, Any]: ...

    def closing(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The chunk that carries the usage."""
        ...


def usage_of(tickets: Sequence[Ticket], answers: int, told_by: Ticket) -> dict[str, Any]:
    """Usage of a call with so many answers to each of its prompts, which count once. What was cached is told by one sequence
    alone: in vLLM the first one of a stream, and the last one of a whole answer."""
    prompt = sum(ticket.prompt_tokens for ticket in tickets[::answers])
    completion = sum(ticket.produced_tokens for ticket in tickets)
    return {
        "prompt_tokens": prompt,
        "total_tokens": prompt + completion,
        "completion_tokens": completion,
        "prompt_tokens_details": {"cached_tokens": told_by.cached_tokens},
    }


def usage_so_far(ticket: Ticket) -> dict[str, Any]:
    """How far one sequence is."""
    prompt, completion = ticket.prompt_tokens, ticket.produced_tokens
    return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}


class Chat:
    def __init__(self, request_id: str, model: str) -> None:
        self._id = f"chatcmpl-{request_id}"
        self._model = model
        self._created = int(time.time())

    def chunk(self, index: int, output: Output, text: str, *, first: bool, last: bool) -> list[dict[str, Any]]:
        chunks = []
        if first:
            chunks.append(
                self._delta(index, {"role": "assistant", "content": "" if output.tool is None else None}, None)
            )
        delta: dict[str, Any] = {"content": text}
        if output.tool is not None:
            function: dict[str, Any] = {"arguments": text}
            call: dict[str, Any] = {"index": 0, "function": function}
            if first:
                call = {"index": 0, "id": self._call_id(index), "type": "function", "function": function}
                function["name"] = output.tool
            delta = {"tool_calls": [call]}
        if text or last or output.tool is not None:
            chunks.append(self._delta(index, delta if text or first else {}, output.finish_reason if last else None))
        return chunks

    def whole(self, outputs: Sequence[Output], usage: dict[str, Any]) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                "message": self._message(index, output),
                "logprobs": None,
                "finish_reason": output.finish_reason,
                "stop_reason": None,
            }
            for index, output in enumerate(outputs)
        ]
        return self._head("chat.completion") | {"choices": choices, "usage": usage}

    def closing(self, usage: dict[str, Any]) -> dict[str, Any]:
        return self._head("chat.completion.chunk") | {"choices": [], "usage": usage}

    def _message(self, index: int, output: Output) -> dict[str, Any]:
        if output.tool is None:
            return {"role": "assistant", "content": output.shown, "tool_calls": []}
        function = {"name": output.tool, "arguments": output.shown}
        call = {"id": self._call_id(index), "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}

    def _delta(self, index: int, delta: dict[str, Any], reason: str | None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self._head("chat.completion.chunk") | {"choices": [choice]}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _call_id(self, index: int) -> str:
        return f"call-{self._id.removeprefix('chatcmpl-')}-{index}"


class Completion:
    def __init__(self, request_id: str, model: str) -> None:
        self._head = {
            "id": f"cmpl-{request_id}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    def chunk(self, index: int, output: Output, text: str, *, first: bool, last: bool) -> list[dict[str, Any]]:
        if not (text or last):
            return []
        return [self._head | {"choices": [self._choice(index, text, output.finish_reason if last else None)]}]

    def whole(self, outputs: Sequence[Output], usage: dict[str, Any]) -> dict[str, Any]:
        choices = [self._choice(index, output.shown, output.finish_reason) for index, output in enumerate(outputs)]
        return self._head | {"choices": choices, "usage": usage}

    def closing(self, usage: dict[str, Any]) -> dict[str, Any]:
        return self._head | {"choices": [], "usage": usage}

    def _choice(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": reason, "stop_reason": None}

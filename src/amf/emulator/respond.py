"""Sending responses: whole or as server-sent events, sound or, by fault, spoilt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import web

from amf.emulator.dialects import Dialect, usage_of, usage_so_far
from amf.emulator.emulator import Emulator
from amf.emulator.faults import Garbage
from amf.emulator.output import Output
from amf.emulator.ticket import Ticket

_NOISE = b"\x00\xff<html>\xfe\x00upstream gave up\xff"
_DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


async def send_json(request: web.Request, emulator: Emulator, payload: Any) -> web.StreamResponse:
    body = _encode(payload)
    match emulator.dice.garbage():
        case "noise":
            body = _NOISE
        case "cut":
            response = web.StreamResponse(
                headers={"Content-Type": "application/json", "Content-Length": str(len(body))}
            )
            await response.prepare(request)
            await response.write(body[: len(body) // 2])
            _hang_up(request)
            return response
    return web.Response(body=body, content_type="application/json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A response under way: `tickets[i]` produces `outputs[i]`, with so many `answers` to each prompt."""

    tickets: Sequence[Ticket]
    outputs: Sequence[Output]
    answers: int
    dialect: Dialect
    include_usage: bool
    continuous_usage: bool


async def send_stream(request: web.Request, emulator: Emulator, generation: Generation) -> web.StreamResponse:
    """Everything produced since the last write goes out in one. A client that leaves aborts what is not done."""
    tickets = generation.tickets
    sent = [-1] * len(tickets)  # characters; -1: not begun
    pending = set(range(len(tickets)))
    garbage = emulator.dice.garbage()
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    try:
        await response.prepare(request)
        while pending:
            await tickets[0].changed.wait()
            tickets[0].changed.clear()
            pieces: list[bytes] = []
            for index in sorted(pending):
                if tickets[index].done:
                    pending.discard(index)
                pieces += _new_events(generation, index, sent)
            if not pending:
                if generation.include_usage:
                    usage = usage_of(tickets, generation.answers, tickets[0])
                    pieces.append(_event(generation.dialect.closing(usage)))
                pieces.append(_DONE)
            if garbage and pieces:
                return await _spoil(request, response, pieces, garbage)
            if pieces:
                await response.write(b"".join(pieces))
        await response.write_eof()
    finally:
        emulator.abort(tickets)
    return response


def _new_events(generation: Generation, index: int, sent: list[int]) -> list[bytes]:
    ticket, output = generation.tickets[index], generation.outputs[index]
    if not ticket.produced_tokens:
        return []
    first, start = sent[index] < 0, max(0, sent[index])
    end = output.shown_at(ticket.produced_tokens)
    if not (first or ticket.done or end > start):
        return []
    sent[index] = end
    chunks = generation.dialect.chunk(index, output, output.shown[start:end], first=first, last=ticket.done)
    told = {"usage": usage_so_far(ticket)} if generation.continuous_usage else {}
    return [_event(chunk | told) for chunk in chunks]


async def _spoil(
    request: web.Request, response: web.StreamResponse, pieces: list[bytes], garbage: Garbage
) -> web.StreamResponse:
    """The first piece is sound; then noise and a proper end, or half a piece and a broken connection."""
    if garbage == "noise":
        await response.write(pieces[0] + _NOISE)
        await response.write_eof()
    else:
        await response.write(pieces[0][: len(pieces[0]) // 2])
        _hang_up(request)
    return response


def _hang_up(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def _event(payload: dict[str, Any]) -> bytes:
    return b"data: " + _encode(payload) + b"\n\n"

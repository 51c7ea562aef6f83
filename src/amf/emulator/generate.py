"""POST /v1/chat/completions and /v1/completions."""

import uuid
from collections.abc import Callable, Sequence

from aiohttp import web
from xxhash import xxh3_64_intdigest

from amf.emulator.chat import render_chat
from amf.emulator.dialects import Chat, Completion, Dialect, usage_of
from amf.emulator.emulator import Emulator
from amf.emulator.errors import ApiError
from amf.emulator.output import Output, Wish, plan_chat, plan_text
from amf.emulator.protocol import ChatBody, CompletionBody, GenerationBody, StreamOptions, parse
from amf.emulator.request import check_model, read_count, read_inputs, read_levers, read_wish
from amf.emulator.respond import Generation, send_json, send_stream
from amf.emulator.routes import EMULATOR
from amf.emulator.tokenizer import count

_COMPLETION_MAX_TOKENS = 16  # the OpenAI API's default for plain completions


async def chat_completions(request: web.Request) -> web.StreamResponse:
    emulator = request.app[EMULATOR]
    body = parse(await request.read(), ChatBody)
    check_model(emulator, body.model)
    if not body.messages:
        raise ApiError(400, "messages cannot be empty", param="messages")
    tools = [] if body.tool_choice == "none" else body.tools or []
    prompt = render_chat(body.messages, tools)
    max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    asked = [(prompt, read_wish(request, emulator, body, max_tokens, count(prompt)))]
    dialect = Chat(_request_id(request, body), emulator.model)
    return await _generate(request, body, asked, dialect, lambda wish, seed: plan_chat(body, wish, seed))


async def completions(request: web.Request) -> web.StreamResponse:
    emulator = request.app[EMULATOR]
    body = parse(await request.read(), CompletionBody)
    check_model(emulator, body.model)
    max_tokens = _COMPLETION_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    prompts = read_inputs(body.prompt or "")
    asked = [(prompt, read_wish(request, emulator, body, max_tokens, count(prompt))) for prompt in prompts]
    dialect = Completion(_request_id(request, body), emulator.model)
    return await _generate(request, body, asked, dialect, lambda wish, seed: plan_text(body, wish, seed))


async def _generate(
    request: web.Request,
    body: GenerationBody,
    asked: Sequence[tuple[bytes, Wish]],
    dialect: Dialect,
    plan: Callable[[Wish, int], Output],
) -> web.StreamResponse:
    """The answers to every prompt of `asked`."""
    emulator = request.app[EMULATOR]
    levers = read_levers(request, emulator, body)
    planned = [(prompt, [plan(wish, seed) for seed in _seeds(emulator, body, prompt)]) for prompt, wish in asked]
    outputs = [output for _, of_prompt in planned for output in of_prompt]
    answers = read_count(body)
    tickets = emulator.submit(planned, levers, streams=bool(body.stream))
    if not body.stream:
        await emulator.finish(tickets)
        return await send_json(request, emulator, dialect.whole(outputs, usage_of(tickets, answers, tickets[-1])))
    forced, options = emulator.config.force_usage, body.stream_options or StreamOptions()
    include_usage = forced or bool(options.include_usage)
    generation = Generation(
        tickets=tickets,
        outputs=outputs,
        answers=answers,
        dialect=dialect,
        include_usage=include_usage,
        continuous_usage=include_usage and (forced or bool(options.continuous_usage_stats)),
    )
    return await send_stream(request, emulator, generation)


def _seeds(emulator: Emulator, body: GenerationBody, prompt: bytes) -> list[int]:
    """One for each sequence wanted, from the prompt, the request's seed and the emulator's."""
    seed = xxh3_64_intdigest(prompt, emulator.config.seed % 2**64) + (body.seed or 0)
    return [seed + index for index in range(read_count(body))]


def _request_id(request: web.Request, body: GenerationBody) -> str:
    return request.headers.get("X-Request-Id") or body.request_id or uuid.uuid4().hex

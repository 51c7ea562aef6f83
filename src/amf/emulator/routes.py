"""The routes beside generation: models, tokens, state, and the key under which handlers find their emulator."""

import time
from typing import Any

from aiohttp import web

from amf.emulator.chat import render_chat
from amf.emulator.emulator import Emulator
from amf.emulator.errors import MALFORMED, ApiError
from amf.emulator.protocol import DetokenizeBody, TokenizeBody, parse
from amf.emulator.request import check_model
from amf.emulator.tokenizer import count, decode, encode, from_ids, to_ids

EMULATOR: web.AppKey[Emulator] = web.AppKey("emulator", Emulator)
VERSION = "0.32.0+amf.emulator"  # the vLLM release whose wire is spoken
_CREATED_S = int(time.time())
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


async def health(request: web.Request) -> web.Response:
    return web.Response()


async def version(request: web.Request) -> web.Response:
    return web.json_response({"version": VERSION})


async def models(request: web.Request) -> web.Response:
    emulator = request.app[EMULATOR]
    model: dict[str, Any] = {
        "id": emulator.model,
        "object": "model",
        "created": _CREATED_S,
        "owned_by": "vllm",
        "root": emulator.config.model,
        "parent": None,
        "max_model_len": emulator.config.context_tokens,
        "permission": [],
    }
    return web.json_response({"object": "list", "data": [model]})


async def metrics(request: web.Request) -> web.Response:
    emulator = request.app[EMULATOR]
    emulator.live.catch_up()
    return web.Response(body=emulator.metrics.render(), headers={"Content-Type": _PROMETHEUS})


async def kv_event_sources(request: web.Request) -> web.Response:
    return web.json_response(request.app[EMULATOR].kv_event_sources())


async def reset_prefix_cache(request: web.Request) -> web.Response:
    return web.json_response({"success": request.app[EMULATOR].live.clear_cache()})


async def tokenize(request: web.Request) -> web.Response:
    emulator = request.app[EMULATOR]
    body = parse(await request.read(), TokenizeBody)
    check_model(emulator, body.model)
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "give either prompt or messages", kind=MALFORMED)
    tokens = encode(body.prompt) if body.prompt is not None else render_chat(body.messages or [], body.tools or [])
    context = emulator.config.context_tokens
    return web.json_response({"count": count(tokens), "max_model_len": context, "tokens": to_ids(tokens)})


async def detokenize(request: web.Request) -> web.Response:
    body = parse(await request.read(), DetokenizeBody)
    check_model(request.app[EMULATOR], body.model)
    try:
        return web.json_response({"prompt": decode(from_ids(body.tokens))})
    except ValueError as error:
        raise ApiError(400, str(error), param="tokens") from error

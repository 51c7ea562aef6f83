"""From an HTTP request to what the worker needs: checked fields, levers, and the limits of its output."""

import re
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from amf.emulator.emulator import Emulator, Levers
from amf.emulator.errors import MALFORMED, ApiError
from amf.emulator.output import Wish
from amf.emulator.protocol import GenerationBody, ModelBody
from amf.emulator.tokenizer import count, encode, from_ids

MAX_SEQUENCES = 16_384
_SALT = re.compile(r"[^@/\\\0]{1,128}")
_RANGES = (
    ("temperature", 0.0, 2.0),
    ("presence_penalty", -2.0, 2.0),
    ("frequency_penalty", -2.0, 2.0),
)
_EXACT = "x-emulate-output-tokens"


def check_model(emulator: Emulator, model: str | None) -> None:
    """Raises ApiError (404) for any model but the one served. A missing model is the one served."""
    if model not in (None, "", emulator.model):
        raise ApiError(404, f"the model {model!r} does not exist; this worker serves {emulator.model!r}", param="model")


def read_levers(request: web.Request, emulator: Emulator, body: ModelBody) -> Levers:
    """Headers win over the body. A priority that is no number is as none, and without --scheduling-policy priority it counts
    for nothing, as in vLLM 0.32. Raises ApiError (400) where the engine would."""
    priority = _priority(request.headers.get("X-Vllm-Priority"))
    if priority is None:
        priority = body.priority or 0
    if emulator.config.scheduling != "priority":
        priority = 0
    salt = body.cache_salt
    if salt is not None and not _SALT.fullmatch(salt):
        raise ApiError(400, "cache_salt has 1 to 128 characters, without @, /, \\ and NUL", param="cache_salt")
    session_id = request.headers.get("X-Session-ID") or body.session_id or ""
    return Levers(priority=priority, salt=salt or "", session_id=session_id)


def read_wish(
    request: web.Request, emulator: Emulator, body: GenerationBody, max_tokens: int | None, prompt_tokens: int
) -> Wish:
    """What the context has no room for is cut off. Raises ApiError (400) for limits that contradict each other, and for a
    prompt or an answer that is longer than the context by itself."""
    context = emulator.config.context_tokens
    if prompt_tokens + 1 > context:
        raise ApiError(400, f"the prompt has {prompt_tokens} tokens, the model's context is {context}", param="prompt")
    if max_tokens is not None and not 1 <= max_tokens <= context:
        least = "max_tokens must be at least 1" if max_tokens < 1 else f"max_tokens is above the context of {context}"
        raise ApiError(400, f"{least}, got {max_tokens}.", param="max_tokens")
    limit = min(context - prompt_tokens, context if max_tokens is None else max_tokens)
    minimum = body.min_tokens or 0
    if not 0 <= minimum <= limit:
        raise ApiError(400, f"min_tokens must be between 0 and max_tokens ({limit}), got {minimum}", param="min_tokens")
    exact = _whole(request, _EXACT)
    if exact is not None and exact < 1:
        raise ApiError(400, f"{_EXACT} must be at least 1", param=_EXACT)
    _check_sampling(body)
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if "" in stops:
        raise ApiError(400, "stop cannot be an empty text")
    return Wish(
        limit_tokens=limit,
        min_tokens=minimum,
        exact_tokens=exact,
        ignore_eos=bool(body.ignore_eos),
        stops=tuple(stops),
    )


def read_count(body: GenerationBody) -> int:
    """`n`. Raises ApiError (400) outside 1..16,384, and for several answers that would all be the same."""
    n = 1 if body.n is None else body.n
    if n > 1 and body.temperature == 0:
        raise ApiError(400, f"n must be 1 where the temperature is 0, got {n}")
    if not 1 <= n <= MAX_SEQUENCES:
        raise ApiError(400, f"n must be between 1 and {MAX_SEQUENCES}, got {n}", param="n")
    return n


def read_inputs(value: str | Sequence[Any], param: str = "prompt") -> list[bytes]:
    """Tokens of a text, of token ids, or of each of a list of either. Raises ApiError (400) for an empty one."""
    if isinstance(value, str):
        inputs = [encode(value)]
    elif value and all(isinstance(item, int) for item in value):
        inputs = [_from_ids(value, param)]
    else:
        inputs = [encode(item) if isinstance(item, str) else _from_ids(item, param) for item in value]
    if not inputs or not all(inputs):
        raise ApiError(400, f"{param} cannot be empty", param=param)
    return inputs


def fits(emulator: Emulator, prompt: bytes) -> None:
    """Raises ApiError (400) for an input longer than the model's context."""
    if count(prompt) > emulator.config.context_tokens:
        raise ApiError(400, f"the input has {count(prompt)} tokens, the model's {emulator.config.context_tokens}")


def _check_sampling(body: GenerationBody) -> None:
    """Raises ApiError (400) for what is out of range."""
    for name, low, high in _RANGES:
        value = getattr(body, name)
        if value is not None and not low <= value <= high:
            raise ApiError(400, f"{name} must be in [{low:g}, {high:g}], got {value:g}", param=name)
    if body.top_p is not None and not 0 < body.top_p <= 1:
        raise ApiError(400, f"top_p must be in (0, 1], got {body.top_p:g}", param="top_p")
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options are for streams: set stream to true", param="stream_options")


def _from_ids(ids: Any, param: str) -> bytes:
    if not isinstance(ids, list):
        raise ApiError(400, f"{param} mixes texts and token ids", param=param, kind=MALFORMED)
    try:
        return from_ids(ids)
    except ValueError as error:
        raise ApiError(400, str(error), param=param, kind=MALFORMED) from error


def _priority(text: str | None) -> int | None:
    try:
        return None if text is None else int(text)
    except ValueError:
        return None


def _whole(request: web.Request, header: str) -> int | None:
    text = request.headers.get(header)
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        raise ApiError(400, f"the header {header} must be an integer, not {text!r}", param=header) from None

"""The prompt that an order is about, from a file: a JSON list of token ids, or the body of a request, which is tokenised as the
gateway would do it."""

from typing import Any

import aiohttp
import msgspec

from amf.config import ServeConfig
from amf.gateway.exact import encoder_for

MAX_TOKEN = 2**32 - 1


class PromptError(ValueError):
    """The file is no prompt; the message says what to do."""


class _Engines:
    """Satisfies `Askable`, from the configuration alone."""

    def __init__(self, config: ServeConfig, session: aiohttp.ClientSession) -> None:
        self._config = config
        self.session = session

    def address_of_pool(self, pool: str) -> tuple[str, dict[str, str]] | None:
        for worker in self._config.workers:
            if worker.model in (None, pool):
                login = {"Authorization": f"Bearer {worker.api_key}"} if worker.api_key else {}
                return worker.url.rstrip("/").removesuffix("/v1"), login
        return None


async def tokens_of(raw: bytes, config: ServeConfig, session: aiohttp.ClientSession) -> list[int]:
    """Raises PromptError."""
    try:
        prompt = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise PromptError("the prompt is not JSON; give a list of token ids, or the body of a request") from None
    if isinstance(prompt, dict):
        return await _tokenised(raw, prompt, config, session)
    if not isinstance(prompt, list) or not prompt or not all(map(_is_token, prompt)):
        raise PromptError("the prompt is neither a list of token ids, as [1, 15043], nor the body of a request")
    return prompt


async def _tokenised(
    raw: bytes, body: dict[str, Any], config: ServeConfig, session: aiohttp.ClientSession
) -> list[int]:
    model = body.get("model")
    pool = config.pools.get(model) if isinstance(model, str) else None
    if pool is None:
        known = ", ".join(config.pools) or "none"
        raise PromptError(
            f"the prompt is for the model {model!r}, and only pools with a tokenizer can tokenise it (known: {known}); "
            'give -c with [pools."MODEL"] tokenizer, or a list of token ids'
        )
    if not ("messages" in body or "prompt" in body):
        raise PromptError("the body has neither `messages` nor `prompt`")
    try:
        tokens = await encoder_for(pool.tokenizer, str(model), _Engines(config, session)).encode(raw)
    except ValueError as error:
        raise PromptError(str(error)) from error
    if not tokens:
        raise PromptError("the body could not be tokenised: its template refuses it, or no engine answers /tokenize")
    return tokens


def _is_token(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_TOKEN

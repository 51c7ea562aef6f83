"""Exact prompts: the tokens the engine will see, from the model's own tokenizer or from the engine itself.

Tokenising costs hundreds of times what hashing text costs, so it is chosen per pool and done off the event loop; of a
conversation that grows only what is new is tokenised (`segments.py`), where the tokenizer is here. With it,
prefix keys equal those of the engine's KV events, and the registry holds truth instead of prediction. A prompt that cannot
be rendered here (images, a template's own refusal) falls back to hashed text: the engine may still take it.
"""

import asyncio
import json
import logging
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import msgspec
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from amf.gateway.segments import Segments

try:
    import tokenizers
except ImportError:
    tokenizers = None  # type: ignore[assignment]

log = logging.getLogger("amf.exact")

_TIMEOUT = aiohttp.ClientTimeout(total=10.0)
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
_FORWARDED = ("model", "prompt", "messages", "tools", "chat_template_kwargs", "add_generation_prompt")


class Encoder(Protocol):
    async def encode(self, raw: bytes) -> list[int] | None:
        """Token ids of the request body `raw`; None if the prompt cannot be rendered here."""
        ...


class Askable(Protocol):
    """Where to ask a pool's engines: the shared session, and URL and headers of one that is up."""

    @property
    def session(self) -> aiohttp.ClientSession: ...

    def address_of_pool(self, pool: str) -> tuple[str, dict[str, str]] | None: ...


def encoder_for(tokenizer: str, pool: str, engines: Askable) -> Encoder:
    """`tokenizer`: "engine", or a directory with `tokenizer.json`. Raises ValueError if the directory is of no use."""
    return EngineEncoder(pool, engines) if tokenizer == "engine" else LocalEncoder(Path(tokenizer))


class EngineEncoder:
    """Asks one of the pool's engines through its /tokenize, as vLLM has it. An engine with another one finds no prompt in the
    question and answers with no tokens, or not at all."""

    def __init__(self, pool: str, engines: Askable) -> None:
        self._pool = pool
        self._engines = engines

    async def encode(self, raw: bytes) -> list[int] | None:
        address = self._engines.address_of_pool(self._pool)
        if address is None:
            return None
        fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        question = msgspec.json.encode({name: fields[name] for name in _FORWARDED if name in fields})
        url, headers = address
        try:
            async with self._engines.session.post(
                url + "/tokenize",
                data=question,
                headers={**headers, "Content-Type": "application/json"},
                timeout=_TIMEOUT,
            ) as response:
                answer = msgspec.json.decode(await response.read()) if response.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError) as error:
            log.warning("tokenize failed", extra={"pool": self._pool, "reason": type(error).__name__})
            return None
        tokens = answer.get("tokens") if isinstance(answer, dict) else None
        return tokens if isinstance(tokens, list) and tokens else None


class LocalEncoder:
    """A Hugging Face `tokenizer.json` and the chat template beside it. Raises ValueError if they cannot be used."""

    def __init__(self, directory: Path) -> None:
        if tokenizers is None:
            raise ValueError(
                "a local tokenizer needs the extra `tokenizer`: pip install agent-memory-fabric[tokenizer]"
            )
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise ValueError(f"{directory}: there is no tokenizer.json; give the directory of a Hugging Face model")
        self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        self._segments = Segments(self._tokenizer)
        settings = _read_json(directory / "tokenizer_config.json")
        self._special = {name: _content(settings.get(name)) for name in _SPECIAL if settings.get(name)}
        source = _template_source(directory, settings)
        self._template = _environment().from_string(source) if source else None

    async def encode(self, raw: bytes) -> list[int] | None:
        return await asyncio.to_thread(self._encode, raw)

    def _encode(self, raw: bytes) -> list[int] | None:
        body = msgspec.json.decode(raw)
        if "messages" not in body:
            prompt = body.get("prompt")
            return self._tokenizer.encode(prompt).ids if isinstance(prompt, str) else None
        if self._template is None:
            return None
        options = body.get("chat_template_kwargs")
        try:
            text = self._template.render(
                messages=[_template_message(message) for message in body["messages"]],
                tools=body.get("tools"),
                add_generation_prompt=body.get("add_generation_prompt", True),
                **self._special,
                **(options if isinstance(options, dict) else {}),
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            log.debug("chat template", extra={"reason": type(error).__name__})
            return None
        return self._segments.ids(text)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    return environment


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _template_message(message: dict[str, Any]) -> dict[str, Any]:
    """As engines hand messages to templates: text parts joined, tool arguments as objects."""
    rendered = dict(message)
    content = message.get("content")
    if isinstance(content, list):
        texts = [part.get("text") for part in content]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a part that is not text")
        rendered["content"] = "\n".join(texts)
    if isinstance(message.get("tool_calls"), list):
        rendered["tool_calls"] = [_tool_call(call) for call in message["tool_calls"]]
    return rendered


def _tool_call(call: dict[str, Any]) -> dict[str, Any]:
    function = dict(call["function"])
    if isinstance(function.get("arguments"), str):
        function["arguments"] = json.loads(function["arguments"] or "{}")
    return {**call, "function": function}


def _template_source(directory: Path, settings: dict[str, Any]) -> str | None:
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as JSON ({error})") from error
    return value if isinstance(value, dict) else {}


def _content(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token)

"""From a URL to the adapter that fits the engine behind it. The engine is asked each question once, whichever adapters want to
know."""

from typing import Protocol

import aiohttp

from amf.engines.engine import Engine
from amf.engines.http import HttpEngine
from amf.engines.llamacpp import LlamaCppEngine
from amf.engines.openai import OpenAIEngine
from amf.engines.options import EngineKind, EngineOptions
from amf.engines.sglang import SglangEngine
from amf.engines.tgi import TgiEngine
from amf.engines.trtllm import TrtllmEngine
from amf.engines.vllm import VllmEngine


class _Adapter(Protocol):
    @property
    def kind(self) -> EngineKind: ...

    async def recognises(self, engine: HttpEngine) -> bool:
        """Whether what `engine` asks is this adapter's. Raises EngineError if nothing answers."""
        ...

    def __call__(self, url: str, session: aiohttp.ClientSession, options: EngineOptions) -> Engine: ...


class _Stranger(HttpEngine):
    """An engine that is not known yet; what it has answered it is not asked again."""

    kind = "auto"

    def __init__(self, url: str, session: aiohttp.ClientSession, options: EngineOptions) -> None:
        super().__init__(url, session, options)
        self._answers: dict[str, tuple[int, bytes]] = {}

    async def get(self, path: str) -> tuple[int, bytes]:
        if path not in self._answers:
            self._answers[path] = await super().get(path)
        return self._answers[path]


# In the order in which they are tried. TGI before all who ask for /v1/models, which its older releases lack; the last takes
# whatever speaks the API.
ADAPTERS: tuple[_Adapter, ...] = (
    TgiEngine,
    VllmEngine,
    SglangEngine,
    TrtllmEngine,
    LlamaCppEngine,
    OpenAIEngine,
)


async def connect(url: str, session: aiohttp.ClientSession, options: EngineOptions | None = None) -> Engine:
    """The adapter for the engine at `url`. `session` comes from `http.open_session()`.

    A kind set in the options is taken at its word, without a request. "auto" asks the engine, and raises EngineError if
    it does not answer.
    """
    options = options or EngineOptions()
    stranger = _Stranger(url, session, options)
    for adapter in ADAPTERS:
        if options.kind == adapter.kind or (options.kind == "auto" and await adapter.recognises(stranger)):
            return adapter(url, session, options)
    raise AssertionError(f"no adapter for {options.kind}")

"""From a URL to the adapter that fits the engine behind it."""

from typing import Protocol

import aiohttp

from amf.engines.engine import Engine
from amf.engines.llamacpp import LlamaCppEngine
from amf.engines.openai import OpenAIEngine
from amf.engines.options import EngineKind, EngineOptions
from amf.engines.sglang import SglangEngine
from amf.engines.tgi import TgiEngine
from amf.engines.trtllm import TrtllmEngine
from amf.engines.vllm import VllmEngine


class _Candidate(Engine, Protocol):
    async def recognises(self) -> bool:
        """Whether this adapter's engine answers at its URL. Raises EngineError if nothing does."""
        ...


class _Adapter(Protocol):
    @property
    def kind(self) -> EngineKind: ...

    def __call__(self, url: str, session: aiohttp.ClientSession, options: EngineOptions) -> _Candidate: ...


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
    for adapter in ADAPTERS:
        engine = adapter(url, session, options)
        if options.kind == adapter.kind or (options.kind == "auto" and await engine.recognises()):
            return engine
    raise AssertionError(f"no adapter for {options.kind}")

"""From a URL to the adapter that fits the engine behind it."""

import aiohttp

from amf.engines.engine import Engine
from amf.engines.openai import OpenAIEngine
from amf.engines.options import EngineOptions
from amf.engines.vllm import VllmEngine


async def connect(url: str, session: aiohttp.ClientSession, options: EngineOptions | None = None) -> Engine:
    """The adapter for the engine at `url`. `session` comes from `http.open_session()`.

    A kind set in the options is taken at its word, without a request. "auto" asks the engine, and raises EngineError if
    it does not answer; what is not vLLM is driven as plain OpenAI.
    """
    options = options or EngineOptions()
    if options.kind == "openai":
        return OpenAIEngine(url, session, options)
    engine = VllmEngine(url, session, options)
    if options.kind == "vllm" or await engine.is_vllm():
        return engine
    return OpenAIEngine(url, session, options)

"""Any engine or service that speaks the OpenAI API and tells nothing about its insides."""

from collections.abc import AsyncIterator

from amf.engines.engine import EngineInfo, Observation
from amf.engines.http import HttpEngine, max_model_tokens_of, models_of, roots_of


class OpenAIEngine(HttpEngine):
    """Generates, names its models and says whether it lives. Satisfies `Engine`."""

    kind = "openai"

    @staticmethod
    async def recognises(_: HttpEngine) -> bool:
        """Whatever speaks the API will do."""
        return True

    async def probe(self) -> EngineInfo:
        """The models it serves. Raises EngineError if it does not answer or names none."""
        cards = models_of(await self.get_json("/v1/models"))
        return EngineInfo(
            engine="openai",
            models=tuple(card["id"] for card in cards),
            max_model_tokens=max_model_tokens_of(cards),
            roots=roots_of(cards),
        )

    async def observe(self) -> AsyncIterator[Observation]:
        """Nothing can be observed: waits, without a word, until the adapter is closed."""
        await self._closed.wait()
        nothing: tuple[Observation, ...] = ()
        for observation in nothing:
            yield observation

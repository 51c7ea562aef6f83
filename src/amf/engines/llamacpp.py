"""llama.cpp's server: a few slots that share one context, no priorities, no events.

What it keeps warm is the last context of each slot and, in host memory, the contexts that slots had to give up. It picks the
slot itself: the one whose context the new prompt continues best, else the one idle for longest. On the OpenAI routes it does
not say which it took, and its answers name tokens by count alone; so a copy of the slots kept here would be a second guess
beside the fabric's own. None is kept: warmth is predicted, and each answer's count of cached tokens corrects it. `id_slot`
and `cache_prompt` stay the client's and the server's: a call that is given a slot waits for it while others are free.

Each slot says how long a context may be, but not whether the slots share that much or have it each (`-np` without
`--kv-unified`). Believed is the smaller: calls for more than there is would fail together, while belief in less only holds
some back. `kv_tokens` in the configuration says better.
"""

import math
from typing import Any

from amf.engines.engine import Capabilities, EngineInfo, LoadReport
from amf.engines.http import HttpEngine, cards_of, models_of, positive
from amf.engines.metrics import SampleReader, ratio
from amf.engines.watched import WatchedEngine

_RUNNING, _WAITING = "llamacpp:requests_processing", "llamacpp:requests_deferred"
_USED = "llamacpp:kv_cache_usage_ratio"  # in older builds; newer ones count in /slots
_LOAD = SampleReader((_RUNNING, _WAITING, _USED))


class LlamaCppEngine(WatchedEngine):
    """One llama.cpp server with one model. Satisfies `Engine`."""

    kind = "llamacpp"

    @staticmethod
    async def recognises(engine: HttpEngine) -> bool:
        """It signs its model cards; where a proxy signs them, /props counts slots. Raises EngineError if nothing answers."""
        cards = cards_of(await engine.optional_json("/v1/models"))
        signed = any(card.get("owned_by") == "llamacpp" for card in cards)
        return signed or _slot_count(await _props(engine)) is not None

    async def probe(self) -> EngineInfo:
        """Models from /v1/models; context, slots and build from /props. Raises EngineError without models."""
        cards = models_of(await self.get_json("/v1/models"))
        props = await _props(self)
        settings = props.get("default_generation_settings")
        context_tokens = positive(settings.get("n_ctx")) if isinstance(settings, dict) else None
        build = props.get("build_info")
        return EngineInfo(
            engine="llamacpp",
            models=tuple(dict.fromkeys(name for card in cards for name in _names(card))),
            version=build if isinstance(build, str) else None,
            kv_tokens=context_tokens or _card_tokens(cards[0]),
            max_model_tokens=context_tokens or _card_tokens(cards[0]),
            max_running=_slot_count(props),
            capabilities=Capabilities(token_prompts=True),
        )

    async def load(self) -> LoadReport | None:
        """Running and waiting from /metrics where `--metrics` opens it, else running from /slots, from where also the tokens
        in use; None if neither tells. Raises EngineError."""
        samples = _LOAD.read(await self.metrics_page())
        told = {sample.name: sample.value for sample in samples if math.isfinite(sample.value)}
        slots = await self._slots()
        if _RUNNING not in told and not slots:
            return None
        busy = [slot for slot in slots if slot.get("is_processing") is True]
        used = told.get(_USED)
        if used is None:
            context_tokens = max((positive(slot.get("n_ctx")) or 1 for slot in slots), default=1)
            used = sum(positive(slot.get("n_prompt_tokens")) or 0 for slot in busy) / context_tokens
        return LoadReport(
            running=round(told.get(_RUNNING, len(busy))),
            waiting=round(told.get(_WAITING, 0)),
            kv_used_ratio=ratio(used),
        )

    async def _slots(self) -> list[dict[str, Any]]:
        """What /slots says of each, unless `--no-slots` closes it."""
        slots = await self.optional_json("/slots")
        return [slot for slot in slots if isinstance(slot, dict)] if isinstance(slots, list) else []


async def _props(engine: HttpEngine) -> dict[str, Any]:
    props = await engine.optional_json("/props")
    return props if isinstance(props, dict) else {}


def _names(card: dict[str, Any]) -> list[str]:
    """A model's name and its aliases."""
    aliases = card.get("aliases")
    others = aliases if isinstance(aliases, list) else []
    return [card["id"], *(name for name in others if isinstance(name, str))]


def _card_tokens(card: dict[str, Any]) -> int | None:
    meta = card.get("meta")
    return positive(meta.get("n_ctx")) if isinstance(meta, dict) else None


def _slot_count(props: dict[str, Any]) -> int | None:
    return positive(props.get("total_slots"))

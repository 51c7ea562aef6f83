"""What a worker lacks, and what takes its place: the rule by which the fabric degrades, one line each (docs/engines.md)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# Capability (engines/engine.py), what to call it, and what happens without it.
INSTEAD: tuple[tuple[str, str, str], ...] = (
    (
        "kv_events",
        "KV events",
        "warmth is predicted from the fabric's own calls, and corrected by reported cached tokens",
    ),
    ("token_hashes", "events that name tokens", "a prompt cannot be matched with what the engine says it holds"),
    (
        "attributed_events",
        "events that name requests",
        "in text mode its events are not followed and warmth is predicted; [pools] tokenizer makes them count",
    ),
    ("priority", "priority", "the engine serves in its own order; urgency counts in the fabric's queue alone"),
    ("token_prompts", "prompts of token ids", "clients must send text"),
    ("tokenize", "a tokenizer to ask", "exact mode needs a local tokenizer in [pools]"),
    (
        "retention",
        "retention",
        "the engine forgets by its own rule; the fabric protects contexts by holding cold calls back",
    ),
    ("release", "release of sessions", "what a finished run leaves behind stays until others push it out"),
    ("tiers", "tiers below HBM", "what the engine forgets is computed again"),
    ("lora", "adapters", "each fine-tuned model needs a worker of its own"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lack:
    name: str
    workers: tuple[str, ...]
    instead: str


def lacks_of(workers: Iterable[Mapping[str, Any]]) -> list[Lack]:
    """What some of the workers that have been asked lack, in the order above."""
    asked = [worker for worker in workers if worker.get("capabilities")]
    return [
        Lack(name=name, workers=lacking, instead=instead)
        for capability, name, instead in INSTEAD
        if (lacking := _without([w for w in asked if _concerns(w, capability)], capability))
    ]


def _concerns(worker: Mapping[str, Any], capability: str) -> bool:
    """Events that do not come can name nothing. Those that do are matched by tokens of exact prompts, by request of others.
    LMCache is a tier, which an engine need not say."""
    if capability == "tiers":
        return not worker.get("lmcache_instance")
    if capability not in ("token_hashes", "attributed_events"):
        return True
    return bool(worker["capabilities"].get("kv_events")) and bool(worker.get("exact")) == (capability == "token_hashes")


def _without(workers: Iterable[Mapping[str, Any]], capability: str) -> tuple[str, ...]:
    return tuple(w["name"] for w in workers if w["capabilities"].get(capability) in (None, False, "none", [], ()))


def offers(capabilities: Mapping[str, Any] | None, lmcache_instance: str | None = None) -> str:
    """What a worker can, in a few words, and which instance of LMCache it is."""
    if not capabilities:
        return "?"
    words = [name for key, name in _SHORT if capabilities.get(key)]
    if (priority := capabilities.get("priority", "none")) != "none":
        words.append(f"priority {priority}")
    if tiers := capabilities.get("tiers"):
        words.append("tiers " + "+".join(tiers))
    if (ranks := capabilities.get("ranks", 1)) > 1:
        words.append(f"{ranks} ranks")
    if lmcache_instance:
        words.append(f"LMCache {lmcache_instance}")
    return ", ".join(words) or "generates"


_SHORT = (
    ("kv_events", "events"),
    ("token_hashes", "token hashes"),
    ("attributed_events", "request ids"),
    ("token_prompts", "token prompts"),
    ("tokenize", "tokenize"),
    ("retention", "retention"),
    ("release", "release"),
    ("lora", "LoRA"),
)

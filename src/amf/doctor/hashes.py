"""Exact mode: do the gateway's tokens equal the engine's? Keys of prompts and of KV events are hashes of tokens, so one
token that differs hides all warmth behind it."""

from pathlib import Path
from typing import Any

import msgspec

from amf.doctor.findings import Finding, fail, ok, skip
from amf.doctor.patient import Patient
from amf.engines.engine import EngineError
from amf.gateway.exact import LocalEncoder

_TEXT = "The quick brown fox, 3 < 5: naïve façade — 東京, 🙂!\n\n\tdef f(x):\n        return x ** 2  # twice\n"
_MESSAGES = [
    {"role": "system", "content": "You check tokenizers. " + _TEXT},
    {"role": "user", "content": _TEXT},
    {"role": "assistant", "content": "Done."},
    {"role": "user", "content": "Once more: " + _TEXT},
]
_PROMPTS: dict[str, dict[str, Any]] = {"chats": {"messages": _MESSAGES}, "texts": {"prompt": _TEXT}}
_OTHER = 'let [pools] tokenizer name the directory of the very model that is served, or say tokenizer = "engine"'


async def hashes(patient: Patient) -> list[Finding]:
    """Nothing for a pool in text mode."""
    tokenizer = patient.tokenizer
    if tokenizer is None:
        return []
    theirs = [await tokens_of(patient, body) for body in _PROMPTS.values()]
    if tokenizer == "engine":
        if all(theirs):
            return [ok("tokenizer", "the engine's own /tokenize answers for chats and texts")]
        return [fail("tokenizer", "the engine's /tokenize does not answer", "give [pools] tokenizer a local directory")]
    try:
        encoder = LocalEncoder(Path(tokenizer))
    except ValueError as error:
        return [fail("tokenizer", str(error), _OTHER)]
    found = []
    for (what, body), engines in zip(_PROMPTS.items(), theirs, strict=True):
        ours = await encoder.encode(msgspec.json.encode({"model": patient.model, **body}))
        found.append(_compared(f"tokens of {what}", ours, engines))
    return found


async def tokens_of(patient: Patient, body: dict[str, Any]) -> list[int] | None:
    """As the engine tokenises it; None if it does not."""
    try:
        reply = await patient.ask("POST", "/tokenize", {"model": patient.model, **body})
    except EngineError:
        return None
    answer = reply.json() if reply.status == 200 else None
    tokens = answer.get("tokens") if isinstance(answer, dict) else None
    return tokens if isinstance(tokens, list) and tokens else None


def _compared(check: str, ours: list[int] | None, theirs: list[int] | None) -> Finding:
    if theirs is None:
        return skip(
            check, "the engine has no /tokenize that answers, so they cannot be compared without a call (--probe)"
        )
    if ours is None:
        return fail(check, "the local tokenizer cannot render them: the pool falls back to text mode", _OTHER)
    if ours == theirs:
        return ok(check, f"the local tokenizer and the engine agree on all {len(ours)}")
    place = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    seen = f"they differ from token {place} on: {len(ours)} here, {len(theirs)} in the engine"
    return fail(check, seen, _OTHER)

"""What holds for any engine: it answers, it is well, it serves what is asked of it, and the right adapter drives it."""

from amf.doctor.findings import Finding, fail, ok, skip, warn
from amf.doctor.patient import Patient
from amf.engines.engine import EngineError
from amf.engines.http import models_of

_LOGIN = "set `api_key` of this [[worker]] to a key that the engine accepts"
_REACH = "start the engine, or correct the worker's url; from this machine: curl {url}/v1/models"


async def meet(patient: Patient) -> list[Finding]:
    """The first look. Without an answer `patient.info` stays None and nothing else can be examined."""
    try:
        reply = await patient.ask("GET", "/v1/models")
        await patient.meet()
    except EngineError as error:
        refused = any(f"status {status}" in str(error) for status in (401, 403))
        return [fail("reachable", str(error), _LOGIN if refused else _REACH.format(url=patient.url))]
    assert patient.info is not None
    took_ms = 1000 * (reply.got_s - reply.sent_s)
    return [ok("reachable", f"{patient.url} answers in {took_ms:.0f} ms")]


async def look(patient: Patient) -> list[Finding]:
    """Of an engine that has been met."""
    return [await _health(patient), *_models(patient), await _adapter(patient), *_memory(patient)]


async def _health(patient: Patient) -> Finding:
    assert patient.engine is not None
    if await patient.engine.healthy():
        return ok("health", "it says that it can serve")
    return fail("health", "its health check fails", f"look into the engine's log; curl -i {patient.url}/health")


def _models(patient: Patient) -> list[Finding]:
    assert patient.info is not None
    served, wanted = patient.info.models, patient.config.model
    if wanted is not None and wanted not in served:
        return [
            fail(
                "models",
                f"it serves {', '.join(served)}, not `{wanted}`",
                f'set model = "{served[0]}", or leave it out',
            )
        ]
    others = [model for model in served if model != patient.model]
    root = patient.info.roots.get(patient.model)
    aliases = [model for model in others if root is not None and patient.info.roots.get(model) == root]
    if aliases:
        seen = f"{', '.join(aliases)}: other names of {patient.model}, which the fabric takes for adapters that share no warmth"
        return [warn("models", seen, f"let clients say {patient.model}, and serve it under that name alone")]
    told = f"{', '.join(others)} are taken for adapters of it" if others else "nothing else is served"
    return [ok("models", f"the pool is {patient.model}; {told}")]


async def _adapter(patient: Patient) -> Finding:
    assert patient.info is not None
    kind = patient.info.engine
    if patient.config.engine != "auto":
        return ok("adapter", f"{kind}, as configured")
    if kind == "openai":
        return warn(
            "adapter",
            "openai: no other adapter knows it, so it gives no load, no KV events and takes no priority",
            'if it is an engine with an adapter behind a proxy that hides it, set `engine = "NAME"` and open its /metrics',
        )
    return ok("adapter", f"{kind}, {await _sign(patient)}")


async def _sign(patient: Patient) -> str:
    """By what it was recognised."""
    assert patient.info is not None
    kind = patient.info.engine
    reply = await patient.ask("GET", "/v1/models")
    if any(card.get("owned_by") == kind for card in models_of(reply.json())):
        return f"since /v1/models says owned_by: {kind}"
    page = await patient.ask("GET", "/metrics")
    if f"{kind}:".encode() in page.body:
        return f"since /metrics has names that begin with {kind}:"
    return "by its answers"


def _memory(patient: Patient) -> list[Finding]:
    assert patient.info is not None
    config, info = patient.config, patient.info
    found = []
    if config.kv_tokens is None and info.kv_tokens is None:
        seen = "the engine does not say how large its KV memory is; it is guessed from the model preset and the GPU"
        found.append(warn("KV memory", seen, "set `kv_tokens` (and `block_tokens`) of this [[worker]]"))
    elif config.kv_tokens is not None and info.kv_tokens is not None and config.kv_tokens > info.kv_tokens:
        seen = f"configured are {config.kv_tokens:,} tokens, the engine has {info.kv_tokens:,}"
        found.append(fail("KV memory", seen, "remove `kv_tokens`: the engine says it itself"))
    else:
        source = "as configured" if config.kv_tokens is not None else "as the engine says"
        found.append(ok("KV memory", f"{config.kv_tokens or info.kv_tokens:,} tokens, {source}"))
    if config.block_tokens and info.block_tokens and config.block_tokens != info.block_tokens:
        seen = f"configured are {config.block_tokens} tokens in a block, the engine has {info.block_tokens}"
        found.append(fail("block size", seen, "remove `block_tokens`: the engine says it itself"))
    elif info.block_tokens is None and config.block_tokens is None:
        found.append(skip("block size", f"not said; {patient.block_tokens} tokens are assumed"))
    else:
        found.append(ok("block size", f"{patient.block_tokens} tokens"))
    return found

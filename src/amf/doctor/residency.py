"""LMCache's controller: does it answer soon enough, does it know the workers' instances, and (with a probe) does it find what a
call has left behind? It finds nothing, and says so without an error, where controller and engines hash tokens differently."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from random import Random

import aiohttp

from amf.doctor.findings import Finding, fail, ok, skip, warn
from amf.doctor.patient import CONTROL_S, Patient
from amf.engines.engine import EngineError
from amf.engines.lmcache import CHUNK_TOKENS, EVERYBODY, Controller, ControllerError
from amf.engines.options import ResidencyOptions

_PROBE_TOKENS = CHUNK_TOKENS + 16  # a whole chunk is stored, and a token has to be computed behind it
_PLAIN_TOKENS = range(1000, 20_000)  # ids that are words in any vocabulary of today
_STORED_S = 3.0  # for a chunk to be reported, after the answer to its call
_REGISTER = (
    "start the engine with enable_controller: true, lmcache_instance_id: {instance} and controller_pull_url in LMCache's "
    "configuration, or correct lmcache_instance"
)
_HASHES = "start controller and engines with the same PYTHONHASHSEED and chunk_size; see docs/engines.md"


async def residency(
    options: ResidencyOptions, session: aiohttp.ClientSession, patients: Sequence[Patient], *, probing: bool
) -> list[Finding]:
    """Nothing, where no controller is configured."""
    if options.url is None:
        return []
    controller = Controller(options.url, session, timeout_s=CONTROL_S)
    found: list[Finding] = []
    try:
        async for finding in _examine(controller, options, patients, probing):
            found.append(finding)
    except ControllerError as error:
        fix = "start LMCache's controller, or correct [residency] url; calls go on without it"
        found.append(fail("controller", f"{controller.url}{error}", fix))
    return found


async def _examine(
    controller: Controller, options: ResidencyOptions, patients: Sequence[Patient], probing: bool
) -> AsyncIterator[Finding]:
    known = dict.fromkeys(rank.instance for rank in await controller.ranks(EVERYBODY))
    yield ok("controller", f"{controller.url} answers, and knows " + (", ".join(known) or "no instance by itself"))
    yield await _in_time(controller, options)
    mapped = [patient for patient in patients if patient.config.lmcache_instance]
    if not mapped:
        yield warn(
            "instances", "no [[worker]] is one", "set `lmcache_instance` of each [[worker]] that runs with LMCache"
        )
    for name, count in Counter(patient.config.lmcache_instance for patient in mapped).items():
        if count > 1:
            seen = f"{count} workers are {name}: what one of them holds is believed of all"
            yield fail("instances", seen, "give each engine an lmcache_instance_id of its own")
    for patient in mapped:
        yield await _instance(controller, patient)
        if patient.model and patient.tokenizer is None:
            seen = f"the prompts of {patient.model} are hashed text, and LMCache is asked by tokens: it never is"
            yield fail(f"prompts of {patient.name}", seen, f'set [pools."{patient.model}"] tokenizer')
        if probing:
            yield await _finds(controller, patient)


async def _in_time(controller: Controller, options: ResidencyOptions) -> Finding:
    """A prompt that nobody has: its first chunk ends the walk, so this is what a question costs at least."""
    tokens = _drawn(max(options.min_tokens, 1))
    started_s = time.perf_counter()
    await controller.lookup(tokens)
    took_s = time.perf_counter() - started_s
    seen = f"{1000 * took_s:.0f} ms for a prompt of {len(tokens):,} tokens that nobody has"
    if took_s <= options.delay_s:
        return ok("lookup", seen)
    fix = "put the controller nearer, or raise [residency] delay_s: later answers serve later calls only"
    return warn("lookup", f"{seen}; calls wait {1000 * options.delay_s:.0f} ms for it", fix)


async def _instance(controller: Controller, patient: Patient) -> Finding:
    name = patient.config.lmcache_instance or ""
    check = f"instance {name}"
    ranks = await controller.ranks(name)
    if not ranks:
        return fail(check, f"is not registered; {patient.name} is configured as it", _REGISTER.format(instance=name))
    try:
        ill = [str(rank) for rank, code in (await controller.health(name)).items() if code]
    except ControllerError as error:
        fix = "look into the engine's log: its LMCache worker does not answer the controller"
        return warn(check, f"is registered, and its health cannot be asked ({error})", fix)
    if ill:
        return fail(check, f"is registered, and its ranks {', '.join(ill)} are not well", "look into the engine's log")
    return ok(check, f"{patient.name}, registered with {len(ranks)} rank{'s' if len(ranks) > 1 else ''}, and well")


async def _finds(controller: Controller, patient: Patient) -> Finding:
    """One call of a chunk and a token, then a lookup of it."""
    check, name = f"chunks of {patient.name}", patient.config.lmcache_instance or ""
    if patient.info is None:
        return skip(check, "the engine was not reached")
    tokens = _drawn(_PROBE_TOKENS)
    body = {"model": patient.model, "prompt": tokens, "max_tokens": 1}
    try:
        reply = await patient.ask("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    except EngineError as error:
        return skip(check, f"the call failed: {error}")
    if reply.status != 200:
        return skip(check, f"no telling: a call with a prompt of token ids got status {reply.status}")
    by_s = time.monotonic() + _STORED_S
    while (found := (await controller.lookup(tokens)).of(name)) is None and time.monotonic() < by_s:
        await asyncio.sleep(0.1)
    if found is None:
        return fail(check, f"a call left {CHUNK_TOKENS} tokens or more there, and a lookup does not find them", _HASHES)
    return ok(check, f"a lookup finds what a call has left there: {found.tokens} tokens in {found.location}")


def _drawn(count: int) -> list[int]:
    """Tokens of a prompt that nobody has had before."""
    return Random().choices(_PLAIN_TOKENS, k=count)

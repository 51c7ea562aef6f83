"""What only a call can show. Each probe is a prompt of a few blocks and one token of answer, sent as the gateway would."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec

from amf.doctor.events import heard_of, listening, names_tokens, sources_of
from amf.doctor.findings import Finding, fail, ok, skip, warn
from amf.doctor.hashes import tokens_of
from amf.doctor.patient import Patient, Reply
from amf.doctor.vllm import PRIORITY_FLAG, scheduling_policy
from amf.engines.engine import BlocksStored, EngineError
from amf.engines.http import decoded
from amf.gateway.exact import LocalEncoder
from amf.gateway.usage import StreamTail, Usage, usage_of

_BYTES_A_TOKEN = 6  # more than English has, so that the prompt fills its blocks
_BLOCKS = 4
_DETAILS = "start vLLM with --enable-prompt-tokens-details; other engines: let usage carry prompt_tokens_details"
_USAGE = "start vLLM with --enable-force-include-usage, or let clients send stream_options.include_usage"


@dataclass(frozen=True, slots=True)
class Prober:
    """`path`: the route that takes calls here."""

    patient: Patient
    path: str

    def body(self, text: str, **more: Any) -> dict[str, Any]:
        return {"model": self.patient.model, "max_tokens": 1, **self.prompt(text), **more}

    def prompt(self, text: str) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": text}]} if "chat" in self.path else {"prompt": text}

    async def send(self, text: str, more: Mapping[str, Any] | None = None, **attempt: Any) -> Reply:
        """`more`: fields of the body; `attempt`: of the EngineRequest. Raises EngineError."""
        return await self.patient.generate(self.path, self.body(text, **(more or {})), **attempt)


async def probe(patient: Patient) -> list[Finding]:
    try:
        prober, refusal = await _open(patient)
        if prober is None:
            return [skip("probe", f"nothing was probed: {refusal}; is it an embedding or a reranking model?")]
        found = [*await _events(prober), await _cached(prober), await _stream_usage(prober), await _request_id(prober)]
        return found + (await _priority(prober) if patient.info and patient.info.engine == "vllm" else [])
    except EngineError as error:
        return [fail("probe", f"a tiny call failed: {error}", "look into the engine's log")]
    except TimeoutError:
        return [fail("probe", "a tiny call was not answered in time", "is the engine stuck or overloaded? try again")]


async def _open(patient: Patient) -> tuple[Prober | None, str]:
    """With the first route that takes a call; else why none does."""
    statuses = []
    for path in ("/v1/completions", "/v1/chat/completions"):
        prober = Prober(patient, path)
        reply = await prober.send(_text(patient))
        if reply.status == 200:
            return prober, ""
        statuses.append(f"{path} answers with status {reply.status}")
    return None, ", ".join(statuses)


async def _events(prober: Prober) -> list[Finding]:
    sources = await sources_of(prober.patient)
    if not sources:
        return []
    session, texts = uuid4().hex, list[str]()

    async def send() -> None:
        texts.append(_text(prober.patient))  # a new one each time: what is cached already is not stored again
        await prober.send(texts[-1], session_id=session)

    async with listening(sources) as heard:
        named = await heard_of(send, heard, lambda: any(event.session_id == session for event in heard.stored))
    tokens = [ids for text in texts if (ids := await _tokens(prober, text))]
    if not heard.stored:
        fix = (
            "turn prefix caching on, if it is off; see that the endpoint is this engine's, and that nothing on the way "
            "drops it (an HTTP proxy passes no ZMQ)"
        )
        return [fail("KV event of a call", "none arrived, though calls were answered", fix)]
    found = [ok("KV event of a call", f"{len(heard.stored)} arrived"), _session(prober.patient, heard.stored, named)]
    return [*found, _tokens_named(heard.stored, tokens)] if tokens else found


def _session(patient: Patient, stored: list[BlocksStored], named: bool) -> Finding:
    if named:
        return ok("X-Session-ID", "arrives: the engine's events name it")
    names = patient.info is not None and patient.info.capabilities.attributed_events
    if names or any(event.session_id for event in stored):
        seen = "does not arrive: the engine's events do not name it, though this engine's do"
        return fail("X-Session-ID", seen, "let proxies between gateway and engine pass X-Session-ID")
    return skip(
        "X-Session-ID", "its events name no sessions: an older release, or something strips it; no telling which"
    )


def _tokens_named(stored: list[BlocksStored], prompts: list[list[int]]) -> Finding:
    if any(names_tokens(stored, tokens) for tokens in prompts):
        return ok("hash agreement", "the events name the very tokens that the gateway would hash")
    fix = "let [pools] tokenizer name the directory of the very model that is served"
    return fail("hash agreement", "no event names the tokens that the gateway would hash for the same prompt", fix)


async def _tokens(prober: Prober, text: str) -> list[int] | None:
    """As the gateway would tokenise it; None in text mode."""
    tokenizer = prober.patient.tokenizer
    if tokenizer is None or tokenizer == "engine":
        return await tokens_of(prober.patient, prober.prompt(text)) if tokenizer else None
    try:
        return await LocalEncoder(Path(tokenizer)).encode(msgspec.json.encode(prober.body(text)))
    except ValueError:
        return None


async def _cached(prober: Prober) -> Finding:
    text = _text(prober.patient)
    await prober.send(text)
    usage = _usage(await prober.send(text))
    if usage is None or usage.cached_tokens is None:
        return warn("cached tokens", "usage does not tell them: belief about warmth is not corrected", _DETAILS)
    if usage.cached_tokens == 0:
        seen = f"none of {usage.prompt_tokens} when the same prompt came again"
        fix = "turn prefix caching on; if it is on, this URL leads to several engines: give the gateway each of them"
        return warn("cached tokens", seen, fix)
    return ok("cached tokens", f"{usage.cached_tokens} of {usage.prompt_tokens} when the same prompt came again")


async def _stream_usage(prober: Prober) -> Finding:
    reply = await prober.send(_text(prober.patient), {"stream": True})
    tail = StreamTail()
    tail.feed(reply.body)
    if tail.usage() is not None:
        return ok("usage of streams", "comes without being asked for")
    return warn(
        "usage of streams", "comes only to clients that ask: for others, lengths are counted from the stream", _USAGE
    )


async def _request_id(prober: Prober) -> Finding:
    ours = f"amf-doctor-{uuid4().hex}"
    answer = decoded((await prober.send(_text(prober.patient), request_id=ours)).body)
    if isinstance(answer, dict) and ours in str(answer.get("id")):
        return ok("X-Request-Id", "arrives: the answer's id has it")
    return skip(
        "X-Request-Id", "the answer's id does not show it: not every engine does, so no telling whether it arrives"
    )


async def _priority(prober: Prober) -> list[Finding]:
    """Older releases of vLLM refuse a priority other than 0 unless they schedule by them; 0.32 takes any, whether or not it
    does. In the body nothing strips it. So a refusal tells how the engine schedules, and then the header can be tried
    too. Sent without the adapter, whose own header would win."""
    configured, told = prober.patient.config.priority, await scheduling_policy(prober.patient)
    status = await _status_with(prober, {"priority": 1})
    if status == 200:
        unseen = "it takes any priority, so from outside there is no telling whether the header arrives"
        taken = "it takes priorities; whether it schedules by them it does not say (VLLM_SERVER_DEV_MODE=1 lets it)"
        fix = "see that it was started with --scheduling-policy priority" if configured else ""
        return ([] if told else [skip("priority", taken, fix)]) + [skip("X-Vllm-Priority", unseen)]
    if not 400 <= status < 500:
        return [skip("priority", f"not seen: a call with a priority got status {status}")]
    found = [ok("priority", "the engine refuses priorities, and none are sent")]
    if configured:
        found = [fail("priority", f"the engine refuses calls with a priority (status {status})", PRIORITY_FLAG)]
    if 400 <= await _status_with(prober, {}, {"X-Vllm-Priority": "1"}) < 500:
        return [*found, ok("X-Vllm-Priority", "arrives: the engine refuses it as it refuses the body's")]
    seen = "does not arrive: the engine refuses a priority in the body and not in the header"
    return [*found, warn("X-Vllm-Priority", seen, "let proxies between gateway and engine pass X-Vllm-Priority")]


async def _status_with(prober: Prober, more: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> int:
    body = prober.body(_text(prober.patient), **more)
    return (await prober.patient.ask("POST", prober.path, body, headers)).status


def _usage(reply: Reply) -> Usage | None:
    return usage_of(reply.body) if reply.status == 200 else None


def _text(patient: Patient) -> str:
    """A prompt nobody has sent before, of a few blocks."""
    words = f"amf doctor {uuid4().hex} asks: "
    wanted = _BLOCKS * _BYTES_A_TOKEN * patient.block_tokens
    return words + ("one two three four five six seven eight " * (1 + wanted // 40))[:wanted]

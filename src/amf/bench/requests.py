"""A planned call becomes an HTTP request: body from its blocks, headers from what its pipeline says about itself.

Identity is what schedulers differ on, so it is explicit here. `explicit`: the fabric's own headers, as a declared
graph or a framework shim sends them. `session`: only `x-session-id`, the harness header that session-aware routers
read, as coding agents send it. `none`: nothing at all; the target sees plain requests. `auto`: explicit for declared
pipelines, session for the others.
"""

from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from amf.bench.client import Request, Target, encode_generate
from amf.bench.messages import Conversation
from amf.bench.text import BYTES_PER_TOKEN
from amf.core.types import CallKind
from amf.sim.plan import CallPlan, PipelinePlan

Identity = Literal["auto", "explicit", "session", "none"]
_RERANK_DOCUMENTS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What the driver knows when it sends: the deadline left in real milliseconds (None: none, or not the first call)
    and whether every other call of the pipeline is done."""

    deadline_ms: float | None = None
    last: bool = False


class RequestBuilder:
    """Builds the requests of one pipeline. `run_id` is unique to this execution of it."""

    def __init__(self, pipeline: PipelinePlan, target: Target, identity: Identity, run_id: str) -> None:
        self._pipeline = pipeline
        self._target = target
        self._identity = ("explicit" if pipeline.declared else "session") if identity == "auto" else identity
        self._run_id = run_id
        self._conversation = Conversation(pipeline)

    def build(self, call: CallPlan, moment: Moment) -> Request:
        path, body = self._body(call)
        return Request(kind=call.kind, path=path, body=body, headers=self._headers(call, moment))

    def _body(self, call: CallPlan) -> tuple[str, bytes]:
        model = self._target.model(call.pool)
        if call.kind is CallKind.EMBED:
            text = self._conversation.prompt(call).decode()
            return "/v1/embeddings", msgspec.json.encode({"model": model, "input": text})
        if call.kind is CallKind.RERANK:
            return "/v1/rerank", msgspec.json.encode({"model": model, **self._rerank(call)})
        prompt: dict[str, Any]
        if self._target.api == "completions":
            path, prompt = "/v1/completions", {"prompt": self._conversation.prompt(call).decode()}
        else:
            path, prompt = "/v1/chat/completions", {"messages": self._conversation.messages(call)}
        return path, encode_generate(model, prompt, max(1, call.output_tokens))

    def _rerank(self, call: CallPlan) -> dict[str, Any]:
        """The first block is the query, the rest is cut into a few documents of whole blocks."""
        text = self._conversation.prompt(call).decode()
        block = call.prompt.block_tokens * BYTES_PER_TOKEN
        size = max(1, call.prompt.blocks // _RERANK_DOCUMENTS) * block
        documents = [text[at : at + size] for at in range(block, len(text), size)]
        return {"query": text[:block], "documents": documents or [text]}

    def _headers(self, call: CallPlan, moment: Moment) -> dict[str, str]:
        if self._identity == "none":
            return {}
        if self._identity == "session":
            return {"x-session-id": self._run_id}
        calls = self._pipeline.calls
        headers = {"x-amf-pipeline": self._pipeline.graph, "x-amf-run-id": self._run_id, "x-amf-hop": call.hop}
        if call.parents:
            headers["x-amf-parents"] = "|".join(dict.fromkeys(calls[parent].hop for parent in call.parents))
        if moment.deadline_ms is not None:
            headers["x-amf-deadline-ms"] = f"{max(1, round(moment.deadline_ms))}"
        if moment.last:
            headers["x-amf-final"] = "true"
        return headers

"""A `Room` holds one Fabric and speaks to it in short verbs; it checks every invariant after every event."""

from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b

from amf.core.config import FabricConfig
from amf.core.cost import Deployment, worker_profile
from amf.core.decisions import Decision, Dispatch
from amf.core.events import (
    CallArrived,
    CallCancelled,
    CallFailed,
    CallFinished,
    Event,
    FirstToken,
    PipelineClosed,
    Woke,
    WorkerJoined,
    WorkerLost,
)
from amf.core.fabric import Fabric
from amf.core.journal import decision_to_dict, event_to_dict
from amf.core.policy.bundles import policies_named
from amf.core.presets import gpu_preset, model_preset
from amf.core.state.ledger import Account
from amf.core.state.pipelines import Pipeline
from amf.core.types import Call, Prefix, SloClass, Worker

PROFILE = worker_profile(model_preset("llama-3.3-70b"), gpu_preset("h200"), Deployment())
BLOCK_TOKENS = 16


def prefix(*parts: tuple[str, int], tail: int = 0, block: int = BLOCK_TOKENS) -> Prefix:
    """A prompt of named parts, each so many tokens. Equal leading parts make equal leading keys."""
    keys: list[int] = []
    parent = 0
    for name, tokens in parts:
        for index in range(tokens // block):
            parent = hash_of(parent, name, index)
            keys.append(parent)
    ends = range(block, block * len(keys) + 1, block)
    return Prefix(keys=tuple(keys), ends=ends, total_tokens=block * len(keys) + tail)


def hash_of(*parts: object) -> int:
    """A stable 64-bit hash (the builtin one is salted for strings)."""
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def worker(name: str, pool: str = "m", **changes: object) -> Worker:
    return replace(Worker(name=name, pool=pool, profile=PROFILE, kv_tokens=500_000), **changes)  # type: ignore[arg-type]


def ended_pipeline(run: str = "r", budget_s: float | None = 100.0, path_s: float = 10.0, **changes: object) -> Pipeline:
    """Of graph g, begun at 0 with a prompt of 1,024 tokens."""
    found = Pipeline(
        run_id=run,
        graph_name="g",
        graph=None,
        opened_s=0.0,
        deadline_s=budget_s,
        slo_class=SloClass.INTERACTIVE,
        tenant="",
        identity="",
        last_event_s=0.0,
        account=Account(),
        first_tokens=1_024,
        alone_path_s=path_s,
        work_s={"m": 4.0},
    )
    for name, value in changes.items():
        setattr(found, name, value)
    return found


class Room:
    def __init__(self, policy: str = "fabric", workers: Sequence[str] = ("w1", "w2"), **config: object) -> None:
        self.fabric = Fabric(replace(FabricConfig(), **config), policies_named(policy))  # type: ignore[arg-type]
        self.now_s = 0.0
        self.records: list[dict[str, object]] = []
        for name in workers:
            self.send(WorkerJoined(at_s=self.now_s, worker=worker(name)))

    def send(self, event: Event) -> list[Decision]:
        decisions = self.fabric.handle(event)
        self.records.append({"event": event_to_dict(event), "decisions": [decision_to_dict(d) for d in decisions]})
        self.fabric.check_invariants()
        return decisions

    def arrive(self, call_id: str, run: str = "", prompt: Prefix | None = None, **changes: object) -> list[Decision]:
        call = Call(call_id=call_id, run_id=run or call_id, pool="m", prefix=prompt or prefix((call_id, 1_000)))
        return self.send(CallArrived(at_s=self.now_s, call=replace(call, **changes)))  # type: ignore[arg-type]

    def first_token(self, call_id: str, attempt: int = 1) -> list[Decision]:
        return self.send(FirstToken(at_s=self.now_s, call_id=call_id, attempt=attempt))

    def finish(self, call_id: str, attempt: int = 1, prompt: int = 1_000, cached: int | None = None, output: int = 100):
        event = CallFinished(
            at_s=self.now_s,
            call_id=call_id,
            attempt=attempt,
            prompt_tokens=prompt,
            cached_tokens=cached,
            output_tokens=output,
        )
        return self.send(event)

    def fail(self, call_id: str, attempt: int = 1, **changes: object) -> list[Decision]:
        event = CallFailed(at_s=self.now_s, call_id=call_id, attempt=attempt, reason="connection reset")
        return self.send(replace(event, **changes))  # type: ignore[arg-type]

    def cancel(self, call_id: str) -> list[Decision]:
        return self.send(CallCancelled(at_s=self.now_s, call_id=call_id))

    def close(self, run: str) -> list[Decision]:
        return self.send(PipelineClosed(at_s=self.now_s, run_id=run))

    def lose(self, name: str) -> list[Decision]:
        return self.send(WorkerLost(at_s=self.now_s, name=name, reason="test"))

    def join(self, name: str, **changes: object) -> list[Decision]:
        return self.send(WorkerJoined(at_s=self.now_s, worker=worker(name, **changes)))

    def wake(self, at_s: float) -> list[Decision]:
        self.now_s = at_s
        return self.send(Woke(at_s=at_s))

    def serve(self, call_id: str, run: str = "", prompt: Prefix | None = None, **changes: object) -> str:
        """Arrive, be dispatched at once, first token when it is due by the cost model, finish with everything believed warm
        reported cached. Returns the worker."""
        placed = dispatch_in(self.arrive(call_id, run, prompt, **changes))
        self.now_s = self.fabric.book.workers[placed.worker].flights[call_id].due_s
        self.first_token(call_id)
        self.finish(call_id, prompt=(prompt or prefix((call_id, 1_000))).total_tokens, cached=placed.hit_tokens)
        return placed.worker


def dispatch_in(decisions: Sequence[Decision]) -> Dispatch:
    found = [decision for decision in decisions if isinstance(decision, Dispatch)]
    assert len(found) == 1, decisions
    return found[0]


def kinds(decisions: Sequence[Decision]) -> list[str]:
    return [type(decision).__name__ for decision in decisions if type(decision).__name__ != "WakeAt"]

"""The kinds of workload: each reads or draws the pipelines of one [workload] or one part of a mix."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TypeVar

from amf.core.graph import CallGraph
from amf.core.types import Worker
from amf.sim.plan import PipelinePlan
from amf.sim.scenario import ScenarioError, WorkloadSpec
from amf.sim.workload.azure import RecordedLengths, lengths_pipeline, read_lengths
from amf.sim.workload.chat import draw_requests
from amf.sim.workload.claude_code import SharedStart, draw_pipelines, read_sessions
from amf.sim.workload.declared import read_graph
from amf.sim.workload.graphs import built_in, draw_graph
from amf.sim.workload.models import pools_for
from amf.sim.workload.mooncake import RecordedRequest, read_requests, request_pipeline
from amf.sim.workload.otel import read_traces
from amf.sim.workload.recorded import read_recording
from amf.sim.workload.recording import repeated
from amf.sim.workload.sessions import draw_session
from amf.sim.workload.template import Template
from amf.sim.workload.traffic import Traffic, traffic_pipeline

OTEL_BLOCK_TOKENS = 16
Request = TypeVar("Request", RecordedRequest, RecordedLengths)


@dataclass(frozen=True, slots=True)
class Drawn:
    """`graphs` and `graphs_in_turn` as in `sim/plan.py`."""

    name: str
    pipelines: tuple[PipelinePlan, ...]
    notes: tuple[str, ...] = ()
    graphs: tuple[CallGraph, ...] = ()
    graphs_in_turn: tuple[CallGraph, ...] = ()


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked of a kind. `block_tokens`: the length of blocks where the kind can choose it, None: as it likes."""

    spec: WorkloadSpec
    fleet: Sequence[Worker]
    rng: Random
    block_tokens: int | None = None

    @property
    def path(self) -> Path:
        if self.spec.path is None:
            raise ScenarioError(f'kind = "{self.spec.kind}" needs the path of a recording')
        return self.spec.path

    @property
    def room(self) -> int:
        """Tokens of one call that every worker can hold."""
        return min(worker.kv_tokens for worker in self.fleet)


def draw(order: Order) -> Drawn:
    """Raises ScenarioError if a recording cannot be read or the fleet does not fit."""
    return _KINDS[order.spec.kind](order)


def _claude_code(order: Order) -> Drawn:
    spec = order.spec
    sessions = read_sessions(order.path, spec.think_cap_s)
    kept = [each for each in sessions if each.largest_call_tokens <= order.room]
    notes = [f"recorded Claude Code sessions; think gaps capped at {spec.think_cap_s:g} s, tool gaps as recorded"]
    notes += _left_out(len(sessions) - len(kept), len(sessions), "sessions", order)
    if not kept:
        raise ScenarioError(f"{spec.path}: no session fits in {order.room} KV tokens; raise [[pool]] kv_tokens")
    if spec.share_system:
        start = SharedStart()
        try:
            kept = [start.apply(session) for session in kept]
        except ValueError as error:
            raise ScenarioError(f"{spec.path}: {error}; remove share_system, or replay fewer sessions") from error
        notes.append("ASSUMED: sessions with equal tool and system lengths share these texts; the trace does not say")
    if spec.pipelines > len(kept):
        notes.append(f"{len(kept)} sessions, repeated with fresh content")
    pools = pools_for((model for session in kept for model in session.models), spec, order.fleet)
    return Drawn("claude-code", draw_pipelines(kept, spec.pipelines, pools, order.rng), tuple(notes))


def _mooncake(order: Order) -> Drawn:
    note = "recorded Mooncake requests, each a pipeline of one call"
    return _requests(order, note, read_requests(order.path), request_pipeline)


def _azure(order: Order) -> Drawn:
    note = "recorded Azure LLM requests: times and lengths; nothing is shared"
    return _requests(order, note, read_lengths(order.path), lengths_pipeline)


def _requests(
    order: Order, note: str, requests: Sequence[Request], pipeline: Callable[[Request, int, str], PipelinePlan]
) -> Drawn:
    """Those that fit, in order, each a pipeline of one call."""
    kept = [each for each in requests if each.total_tokens <= order.room]
    left_out: list[str] = _left_out(len(requests) - len(kept), len(requests), "requests", order)
    pool = order.fleet[0].pool
    plans: tuple[PipelinePlan, ...] = tuple(
        pipeline(each, i, pool) for i, each in enumerate(kept[: order.spec.pipelines])
    )
    return Drawn(order.spec.kind, plans, (note, *left_out, *_fewer(len(plans), order)))


def _otel(order: Order) -> Drawn:
    block_tokens = order.block_tokens or OTEL_BLOCK_TOKENS
    return _replayed(order, read_traces(order.path, block_tokens, order.spec.think_cap_s))


def _recorded(order: Order) -> Drawn:
    return _replayed(order, read_recording(order.path, order.block_tokens, order.spec.think_cap_s))


def _replayed(order: Order, traffic: Traffic) -> Drawn:
    """At the recorded times, every pipeline once; under other arrivals, in random order and as often as asked."""
    spec = order.spec
    pools = pools_for(traffic.models, spec, order.fleet)
    room = {pool: min(worker.kv_tokens for worker in order.fleet if worker.pool == pool) for pool in pools.values()}
    kept = [
        each for each in traffic.pipelines if all(call.total_tokens <= room[pools[call.model]] for call in each.calls)
    ]
    notes = [*traffic.notes, *_left_out(len(traffic.pipelines) - len(kept), len(traffic.pipelines), "pipelines", order)]
    if spec.arrival == "trace" or not kept:
        chosen = [(each, 0) for each in kept[: spec.pipelines]]
        notes += _fewer(len(chosen), order)
    else:
        chosen = list(repeated(kept, spec.pipelines, order.rng))
        if spec.pipelines > len(kept):
            notes.append(f"{len(kept)} recorded pipelines, repeated with fresh content")
    plans = tuple(traffic_pipeline(traffic, each, again, pools) for each, again in chosen)
    return Drawn(spec.kind, plans, tuple(notes))


def _coding_sessions(order: Order) -> Drawn:
    spec = order.spec
    plans = tuple(
        draw_session(
            number, order.fleet[0].pool, spec.think_cap_s, spec.scale_tokens, Random(order.rng.getrandbits(64))
        )
        for number in range(spec.pipelines)
    )
    note = f"SYNTHETIC coding sessions fitted to published statistics; think gaps capped at {spec.think_cap_s:g} s"
    return Drawn("coding-sessions", plans, (note, *_scaled(spec)))


def _chat_requests(order: Order) -> Drawn:
    spec = order.spec
    plans = draw_requests(spec.pipelines, order.fleet[0].pool, spec.scale_tokens, order.rng)
    note = "SYNTHETIC chat requests fitted to published statistics, each a pipeline of one call"
    return Drawn("chat-requests", plans, (note, *_scaled(spec)))


def _graph(order: Order) -> Drawn:
    spec, template = order.spec, _template(order.spec, order.fleet[0].pool)
    missing = [pool for pool in template.pools if all(worker.pool != pool for worker in order.fleet)]
    if missing:
        raise ScenarioError(
            f"graph {template.name} also calls {', '.join(missing)}; add a [[pool]] for each, or remove all "
            "[[pool]] tables to run a built-in graph on its own fleet"
        )
    plans = draw_graph(template, spec.pipelines, spec.scale_tokens, order.rng)
    notes = (f"SYNTHETIC pipelines: {template.about}", *_scaled(spec))
    in_turn = template.graph_in_turn()
    return Drawn(template.name, plans, notes, (template.call_graph(),), (in_turn,) if in_turn else ())


_KINDS: dict[str, Callable[[Order], Drawn]] = {
    "claude-code": _claude_code,
    "mooncake": _mooncake,
    "azure": _azure,
    "otel": _otel,
    "recorded": _recorded,
    "coding-sessions": _coding_sessions,
    "chat-requests": _chat_requests,
    "graph": _graph,
}


def _template(spec: WorkloadSpec, default_pool: str) -> Template:
    name = spec.graph or ""
    return read_graph(Path(name), default_pool) if Path(name).suffix else built_in(name)


def _left_out(count: int, total: int, what: str, order: Order) -> list[str]:
    return [f"{count} of {total} {what} left out: longer than {order.room} KV tokens"] if count else []


def _fewer(count: int, order: Order) -> list[str]:
    spec = order.spec
    if not count:
        raise ScenarioError(f"{spec.path}: nothing in it fits in a worker's KV memory; raise [[pool]] kv_tokens")
    return [f"the recording has {count} of the {spec.pipelines} asked for"] if count < spec.pipelines else []


def _scaled(spec: WorkloadSpec) -> list[str]:
    return [f"contexts scaled x{spec.scale_tokens:g}"] if spec.scale_tokens != 1 else []

"""Recorded Claude Code sessions as pipelines, in the original form (claude_original.py) or in the compact one: one session
a line, each call's block ids as what it keeps of an earlier call (`ref`, `keep`) plus `new` runs. Decoding keeps runs as
runs: a million-token prompt costs a few pairs of numbers.

    {"session": name, "block": 64, "tool_tokens", "system_tokens", "calls": [{"id", "p": [parent ids], "t": start s,
      "dur": model s or null, "gap": s since the previous response or null, "kind": "tool"|"think", "model",
      "agent": lane, "in", "out": tokens, "ref": call id, "keep": blocks kept of it, "new": [[first block id, count], …]}]}

What is kept: every call, sub-agent lanes, parents, tokens in to the token (blocks x block + tail) and out (at least 1, as
an API cannot ask for none), tool gaps in full. What is changed: think gaps are capped; a missing gap in the main lane is
taken from the recorded times, a sub-agent's first call starts at once; the gap of a call that joins sub-agents is what
remains of it beyond the longest of them, since the recorded one includes their run.

Block ids are a session's own (but for originals that say their scope is global), so sessions share nothing, though the
tools and the system prompt at their beginning are often the same. `SharedStart` is the guess that they are where their
lengths are equal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from amf.sim.plan import CallPlan, PipelinePlan, PromptPlan
from amf.sim.workload.blocks import SHARED_BLOCKS, Run, blocks_from, first_blocks, merged
from amf.sim.workload.claude_original import MAIN_LANE, compact_record
from amf.sim.workload.recording import decoded, repeated

GRAPH = "claude-code"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedCall:
    id: str
    parents: tuple[int, ...]
    model: str
    lane: str
    runs: tuple[Run, ...]
    tail_tokens: int
    output_tokens: int
    gap_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedSession:
    name: str
    block_tokens: int
    calls: tuple[RecordedCall, ...]
    tool_tokens: int = 0
    system_tokens: int = 0
    global_ids: bool = False

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(call.model for call in self.calls))

    @property
    def largest_call_tokens(self) -> int:
        return max(_prompt_tokens(call, self.block_tokens) + call.output_tokens for call in self.calls)


def read_sessions(path: Path, think_cap_s: float) -> list[RecordedSession]:
    """The sessions in a file, a folder or the files that match a pattern, each recognised by its content. Raises
    ScenarioError if there is none or one is in neither form."""
    return decoded(path, lambda record: _session(record, think_cap_s))


def draw_pipelines(
    sessions: Sequence[RecordedSession], count: int, pools: Mapping[str, str], rng: Random
) -> tuple[PipelinePlan, ...]:
    """`count` pipelines: the sessions in random order, then again in another order with fresh namespaces, and so on.
    `pools` by recorded model."""
    return tuple(_pipeline(session, again, pools) for session, again in repeated(sessions, count, rng))


@dataclass(slots=True)
class SharedStart:
    """Puts equal starts of sessions on equal static blocks: the tools of sessions with the same `tool_tokens`, and the
    system prompt after them of those whose `system_tokens` agree too."""

    _next_id: int = 0
    _runs: dict[tuple[int, ...], Run] = field(default_factory=dict)

    def apply(self, session: RecordedSession) -> RecordedSession:
        """Raises ValueError if there are more kinds of starts than static block ids."""
        if session.global_ids:
            return session
        size, both = session.block_tokens, session.tool_tokens + session.system_tokens
        first = next((call.runs for call in session.calls if not call.lane), ())
        own = first_blocks(first, both // size)
        tools = session.tool_tokens // size
        static = merged(
            (
                self._run((size, session.tool_tokens), tools),
                self._run((size, session.tool_tokens, session.system_tokens), both // size - tools),
            )
        )
        calls = tuple(replace(call, runs=_restarted(call.runs, own, static)) for call in session.calls)
        return replace(session, calls=calls)

    def _run(self, key: tuple[int, ...], blocks: int) -> Run:
        if key not in self._runs:
            self._runs[key] = (self._next_id, blocks)
            self._next_id += blocks
            if self._next_id > SHARED_BLOCKS:
                raise ValueError(
                    f"the sessions begin with more than {SHARED_BLOCKS} different blocks of tools and system"
                )
        return self._runs[key]


def _restarted(runs: Sequence[Run], own: Sequence[Run], static: Sequence[Run]) -> tuple[Run, ...]:
    """`runs` with as many leading blocks as agree with `own` taken from `static` instead."""
    same = 0
    for (first, count), (own_first, own_count) in zip(merged(runs), own, strict=False):
        if first != own_first:
            break
        same += min(count, own_count)
        if count < own_count:
            break
    same = min(same, sum(count for _, count in static))
    return merged((*first_blocks(static, same), *blocks_from(runs, same)))


def _pipeline(session: RecordedSession, repetition: int, pools: Mapping[str, str]) -> PipelinePlan:
    identity = f"{GRAPH}/{session.name}/{repetition}"
    namespace = f"{GRAPH}/global/{repetition}" if session.global_ids else identity
    calls = tuple(
        CallPlan(
            index=index,
            hop="subagent" if call.lane else "main",
            pool=pools[call.model],
            prompt=PromptPlan(
                namespace=namespace,
                block_tokens=session.block_tokens,
                runs=call.runs,
                tail_tokens=call.tail_tokens,
            ),
            output_tokens=call.output_tokens,
            parents=call.parents,
            gap_s=call.gap_s,
            lane=call.lane,
        )
        for index, call in enumerate(session.calls)
    )
    return PipelinePlan(pipeline_id=identity, graph=GRAPH, calls=calls)


def _session(record: dict[str, Any], think_cap_s: float) -> RecordedSession:
    if "requests" in record:
        record = compact_record(record)
    block_tokens = int(record["block"])
    if block_tokens < 1:
        raise ValueError("has a block length below 1")
    entries: list[dict[str, Any]] = record["calls"]
    if not entries:
        raise ValueError("has no calls")
    order: dict[str, int] = {}
    calls: list[RecordedCall] = []
    for entry in entries:
        call = _call(entry, entries, order, calls, block_tokens)
        if entry["kind"] == "think":
            call = replace(call, gap_s=min(call.gap_s, think_cap_s))
        order[call.id] = len(calls)
        calls.append(call)
    return RecordedSession(
        name=str(record["session"]),
        block_tokens=block_tokens,
        calls=tuple(calls),
        tool_tokens=int(record.get("tool_tokens", 0)),
        system_tokens=int(record.get("system_tokens", 0)),
        global_ids=bool(record.get("global", False)),
    )


def _call(
    entry: dict[str, Any],
    entries: Sequence[dict[str, Any]],
    order: dict[str, int],
    calls: Sequence[RecordedCall],
    block_tokens: int,
) -> RecordedCall:
    name = str(entry["id"])
    unknown = [each for each in (*entry["p"], *([entry["ref"]] if "ref" in entry else ())) if each not in order]
    if unknown:
        raise ValueError(f"has a call {name} that refers to {unknown[0]}, which is not before it")
    kept = first_blocks(calls[order[entry["ref"]]].runs, int(entry["keep"])) if "ref" in entry else ()
    runs = merged((*kept, *((int(first) + SHARED_BLOCKS, int(count)) for first, count in entry["new"])))
    blocks = sum(count for _, count in runs)
    parents = tuple(order[each] for each in entry["p"])
    return RecordedCall(
        id=name,
        parents=parents,
        model=str(entry["model"]),
        lane="" if entry["agent"] == MAIN_LANE else str(entry["agent"]),
        runs=runs,
        tail_tokens=min(max(int(entry["in"]) - blocks * block_tokens, 0), block_tokens - 1),
        output_tokens=max(1, int(entry["out"])),
        gap_s=_gap_s(entry, [entries[parent] for parent in parents], entries),
    )


def _gap_s(entry: dict[str, Any], parents: Sequence[dict[str, Any]], entries: Sequence[dict[str, Any]]) -> float:
    if not parents:
        return 0.0
    if entry["gap"] is None:
        if entry["agent"] != parents[0]["agent"]:
            return 0.0
        return max(0.0, float(entry["t"]) - max(_end_s(parent) for parent in parents))
    joined = [parent["agent"] for parent in parents if parent["agent"] != entry["agent"]]
    return max(0.0, float(entry["gap"]) - max((_lane_s(lane, entries) for lane in joined), default=0.0))


def _lane_s(lane: str, entries: Sequence[dict[str, Any]]) -> float:
    """Seconds from a lane's first start to its last end, as recorded."""
    own = [each for each in entries if each["agent"] == lane]
    return max(_end_s(each) for each in own) - min(float(each["t"]) for each in own)


def _end_s(entry: dict[str, Any]) -> float:
    return float(entry["t"]) + float(entry["dur"] or 0.0)


def _prompt_tokens(call: RecordedCall, block_tokens: int) -> int:
    return sum(count for _, count in call.runs) * block_tokens + call.tail_tokens

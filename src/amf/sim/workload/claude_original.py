"""A session in the original JSON of callanjfox/kv-cache-tester, as the compact record of claude_code.py.

One file a session: `id, block_size, hash_id_scope, tool_tokens, system_tokens, requests`. A request has `t` (s since the
session's start), `model`, `in`, `out`, `hash_ids`, `input_types`, `stop`, `api_time` (model seconds) and `think_time`
(seconds since the previous answer). A request of type "subagent" is a lane of its own: `agent_id` and `requests` with
times since its own start.

A request waits for the one before it in its lane and for the sub-agents between them; a sub-agent for the request before
it in the lane that called it. A tool's result begins no turn of the user's: the gap before it is the tool's, any other gap
the user's. Older files record some requests twice, streamed and not: both were sent, so both are calls.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from amf.sim.workload.blocks import compressed

MAIN_LANE = "main"
SUBAGENT = "subagent"


@dataclass(slots=True)
class _Transcript:
    calls: list[dict[str, Any]] = field(default_factory=list)
    lanes: list[str] = field(default_factory=list)

    def follow(self, requests: Sequence[Mapping[str, Any]], lane: "_Lane") -> list[str]:
        """Append a lane's calls. Returns the ids of those that whoever waits for the lane waits for."""
        before, joined, last = list(lane.called_by), list[str](), list[str]()
        for number, request in enumerate(requests):
            identity = f"{lane.prefix}{number}"
            if request.get("type") == SUBAGENT:
                inner = _Lane(self._name(request), f"{identity}.", lane.start_s + float(request.get("t", 0.0)), before)
                joined += self.follow(request.get("requests", ()), inner)
                continue
            self.calls.append(_call(request, identity, lane, [*before, *joined], first=not last))
            before = last = [identity]
            joined = []
        return [*last, *joined]

    def _name(self, request: Mapping[str, Any]) -> str:
        """The agent's id; one that is met again is another lane."""
        name = str(request.get("agent_id") or SUBAGENT)
        again = sum(each == name or each.startswith(f"{name}#") for each in self.lanes)
        name = f"{name}#{again + 1}" if again else name
        self.lanes.append(name)
        return name


@dataclass(frozen=True, slots=True)
class _Lane:
    name: str
    prefix: str = ""
    start_s: float = 0.0
    called_by: Sequence[str] = ()


def compact_record(session: Mapping[str, Any]) -> dict[str, Any]:
    """Raises KeyError for a missing field."""
    transcript = _Transcript()
    transcript.follow(session["requests"], _Lane(MAIN_LANE))
    return {
        "session": session["id"],
        "block": session["block_size"],
        "global": session.get("hash_id_scope") == "global",
        "tool_tokens": session.get("tool_tokens", 0),
        "system_tokens": session.get("system_tokens", 0),
        "calls": transcript.calls,
    }


def _call(request: Mapping[str, Any], identity: str, lane: _Lane, parents: list[str], *, first: bool) -> dict[str, Any]:
    tool = "tool_result" in request.get("input_types", ())
    return {
        "id": identity,
        "p": parents,
        "t": lane.start_s + float(request["t"]),
        "dur": request.get("api_time"),
        "gap": None if first else request.get("think_time"),
        "kind": "tool" if tool else "think",
        "model": request["model"],
        "agent": lane.name,
        "in": request["in"],
        "out": request["out"],
        "new": compressed(request["hash_ids"]),
    }

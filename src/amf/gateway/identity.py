"""Who is asking: the pipeline, run and hop of a request, from the best source it carries (docs/wire.md).

The ladder, first match wins: explicit (`amf` in the body, `x-amf-*` headers, `amf_*` metadata) > W3C baggage > the session
headers of coding agents and gateways > API-native fields > `traceparent`. What is left is derived (derive.py). Reading is
pure: nothing is remembered here, so a request that is turned away leaves no trace.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from amf.core.types import BranchHint
from amf.gateway.body import Amf, Body
from amf.gateway.branches import (
    GroupDecision,
    alternative_paths,
    branch_hint,
    branch_path,
    check_branch,
    decisions_of_call,
)
from amf.gateway.problem import bad_request
from amf.gateway.slo import NO_WISHES, SLO_HEADERS, Wishes, read_wishes
from amf.gateway.tracecontext import baggage, trace_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What the request says of itself. `run_id` "" means: derive it."""

    source: str
    run_id: str = ""
    session_id: str = ""
    parent_session_id: str = ""
    graph: str = ""
    names_graph: bool = False  # explicitly; else `graph` is a hint
    hop: str = ""
    parents: tuple[str, ...] = ()
    branch: str = ""
    branch_hint: BranchHint | None = None
    decisions: tuple[GroupDecision, ...] = ()  # on branch groups, before this call arrives
    wishes: Wishes = NO_WISHES
    final: bool = False


@dataclass(frozen=True, slots=True)
class _Session:
    """A rung's answer: whose session, inside which run."""

    source: str
    run_id: str
    session_id: str = ""
    parent_id: str = ""
    final: bool = False


_NOBODY = _Session("derived", "")

# Source, session headers in order, headers that name the session above it. The order is the ladder's.
_HARNESS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("dynamo", ("x-dynamo-session-id",), ("x-dynamo-parent-session-id",)),
    ("claude-code", ("x-claude-code-agent-id", "x-claude-code-session-id"), ("x-claude-code-session-id",)),
    ("codex", ("thread-id", "thread_id"), ("x-codex-parent-thread-id",)),
    ("session-id", ("session-id", "session_id"), ()),
    ("x-session-id", ("x-session-id",), ("x-parent-session-id",)),
    ("x-session-affinity", ("x-session-affinity",), ()),
    ("litellm", ("x-litellm-session-id", "litellm_session_id"), ()),
    ("helicone", ("helicone-session-id",), ()),
    ("routing-key", ("x-sgl-routing-key", "x-smg-routing-key"), ()),
)
_EXPLICIT = (
    "pipeline", "run_id", "session_id", "hop", "parents", "branch", "commit", "discard", "deadline_ms", "slo_class", "final",
)  # fmt: skip
_IDS = ("pipeline", "run_id", "session_id", "hop")
_EXPLICIT_HEADERS = tuple((name, "x-amf-" + name.replace("_", "-")) for name in _EXPLICIT)
_BAGGAGE = {
    "pipeline": ("gen_ai.workflow.name",),
    "run_id": ("amf.run", "amf.run.id"),
    "session_id": ("gen_ai.conversation.id", "session.id"),
    "hop": ("amf.hop", "amf.hop.id", "gen_ai.agent.name"),
    "parents": ("amf.parents", "amf.hop.parents"),
    "branch": ("amf.branch",),
}
_READ_HEADERS = frozenset(
    [key for _, key in _EXPLICIT_HEADERS]
    + [name for _, names, parents in _HARNESS for name in (*names, *parents)]
    + [*SLO_HEADERS, "baggage", "traceparent", "x-dynamo-session-final"]
)
_MAX_ID_CHARS = 256
_CLAUDE_SESSION = re.compile(r"session_([0-9a-fA-F-]{8,})$")


def read_identity(headers: Mapping[str, str], body: Body) -> Identity:
    """Raises Problem (400) on contradictory or malformed identity or times, (504) on a timeout that has already passed."""
    headers = _read(headers)
    if not (headers or body.amf or body.metadata):  # the common case, made quick
        native = _native_session(body) or _NOBODY
        return Identity(
            source=native.source,
            run_id=native.run_id,
            session_id=native.session_id,
            wishes=NO_WISHES if body.service_tier is None else read_wishes({}, {}, body.service_tier),
        )
    said = _explicit(headers, body)
    bag = baggage(headers["baggage"]) if "baggage" in headers else {}
    hinted = _hints(bag) if bag else {}
    session = _session(headers, body, said, hinted)
    parents = tuple(p for p in (said.get("parents") or hinted.get("parents") or "").split("|") if p)
    run_named = bool(said.get("run_id") or hinted.get("run_id"))
    hop = said.get("hop") or hinted.get("hop") or ""
    _check_parents(parents, hop, run_named)
    branch = check_branch(said.get("branch") or hinted.get("branch") or "", "x-amf-branch")
    decisions = decisions_of_call(said.get("commit", ""), said.get("discard", ""))
    _check_branch_run(branch, decisions, run_named)
    for name in _IDS:
        if name in said:
            _check_id(name, said[name])
    return Identity(
        source=session.source,
        run_id=session.run_id,
        session_id=session.session_id,
        parent_session_id=session.parent_id,
        graph=said.get("pipeline") or hinted.get("pipeline", ""),
        names_graph=bool(said.get("pipeline")),
        hop=hop,
        parents=parents,
        branch=branch,
        branch_hint=branch_hint(body.amf.branch) if isinstance(body.amf, Amf) else None,
        decisions=decisions,
        wishes=read_wishes(said, headers, body.service_tier),
        final=_flag(said.get("final")) or session.final,
    )


def _read(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that are looked at below, by their names in lower case; of repeated ones the first."""
    found: dict[str, str] = {}
    for name, value in headers.items():
        lowered = name.lower()
        if lowered in _READ_HEADERS:
            found.setdefault(lowered, value)
    return found


def _hints(bag: Mapping[str, str]) -> dict[str, str]:
    """What a baggage says of the request. A hint that is too long or unprintable is no hint."""
    said = {key: value for key, value in bag.items() if _usable(value) or key in _BAGGAGE["parents"]}
    return {name: next((said[key] for key in keys if key in said), "") for name, keys in _BAGGAGE.items()}


def _explicit(headers: Mapping[str, str], body: Body) -> dict[str, str]:
    """Explicit fields as text. The header and the body may both say a thing only if they say the same."""
    said = {name: headers[key] for name, key in _EXPLICIT_HEADERS if key in headers}
    if isinstance(body.amf, Amf):
        for name, value in _amf_fields(body.amf).items():
            if not _same(name, value, said.setdefault(name, value)):
                key = name.replace("_", "-")
                raise bad_request(
                    f"`amf.{name}` in the body and the header `x-amf-{key}` differ: send one of them.",
                    code="contradictory_identity",
                    param=f"amf.{name}",
                )
    if isinstance(body.metadata, dict):
        for name in _EXPLICIT:
            hint = body.metadata.get("amf_" + name)
            if isinstance(hint, str):
                said.setdefault(name, hint)
    return {name: value.strip() for name, value in said.items()}


def _same(name: str, value: str, other: str) -> bool:
    if name == "deadline_ms":
        try:
            return float(value) == float(other)
        except ValueError:
            return False
    return value.strip().lower() == other.strip().lower() if name in ("final", "slo_class") else value == other.strip()


def _amf_fields(amf: Amf) -> dict[str, str]:
    fields: dict[str, Any] = {name: getattr(amf, name) for name in _EXPLICIT}
    if isinstance(amf.parents, list):
        fields["parents"] = "|".join(amf.parents)
    if amf.branch is not None:
        fields["branch"] = branch_path(amf.branch)
    for name in ("commit", "discard"):
        if fields[name] is not None:
            fields[name] = alternative_paths(fields[name], f"amf.{name}")
    if amf.final is not None:
        fields["final"] = "true" if amf.final else "false"
    if amf.deadline_ms is not None:
        fields["deadline_ms"] = repr(amf.deadline_ms)
    return {name: value for name, value in fields.items() if value is not None}


def _session(headers: Mapping[str, str], body: Body, said: Mapping[str, str], hinted: Mapping[str, str]) -> _Session:
    for source, fields in (("explicit", said), ("baggage", hinted)):
        run_id, session_id = fields.get("run_id", ""), fields.get("session_id", "")
        if run_id or session_id:
            return _Session(source, run_id or session_id, session_id or run_id)
    harness = _harness_session(headers)
    if harness is not None:
        return harness
    native = _native_session(body)
    if native is not None:
        return native
    trace = trace_id(headers["traceparent"]) if "traceparent" in headers else None
    return _Session("traceparent", trace, trace) if trace else _NOBODY


def _harness_session(headers: Mapping[str, str]) -> _Session | None:
    if not headers:
        return None
    for source, names, parents in _HARNESS:
        session = next((headers[name] for name in names if _usable(headers.get(name, ""))), "")
        if session:
            parent = next((headers[name] for name in parents if _usable(headers.get(name, ""))), "")
            final = source == "dynamo" and headers.get("x-dynamo-session-final", "").lower() == "true"
            return _Session(source, parent or session, session, parent, final)
    return None


def _native_session(body: Body) -> _Session | None:
    conversation = body.conversation
    if isinstance(conversation, dict):
        conversation = conversation.get("id")
    named: tuple[tuple[str, Any], ...] = (
        ("body:session_id", body.session_id),
        ("body:conversation", conversation),
        ("body:metadata.user_id", _claude_user(body.metadata)),
        ("body:prompt_cache_key", body.prompt_cache_key),
    )
    for source, value in named:
        if isinstance(value, str) and _usable(value):
            return _Session(source, value, value)
    return None


def _claude_user(metadata: Any) -> str | None:
    """The session inside Anthropic's `metadata.user_id`: a JSON text, or `user_…_session_<uuid>` from older clients."""
    user = metadata.get("user_id") if isinstance(metadata, dict) else None
    if not isinstance(user, str):
        return None
    try:
        fields = msgspec.json.decode(user)
    except msgspec.DecodeError:
        match = _CLAUDE_SESSION.search(user)
        return match.group(1) if match else None
    session = fields.get("session_id") if isinstance(fields, dict) else None
    return session if isinstance(session, str) else None


def _check_parents(parents: tuple[str, ...], hop: str, run_named: bool) -> None:
    if parents and not run_named:
        raise bad_request(
            "`x-amf-parents` needs `x-amf-run-id`: parents are hops of a run, so name the run.",
            code="parents_without_run",
            param="x-amf-parents",
        )
    if hop and hop in parents:
        raise bad_request(f"The hop `{hop}` names itself as its parent.", code="cyclic_parents", param="x-amf-parents")


def _check_branch_run(branch: str, decisions: tuple[GroupDecision, ...], run_named: bool) -> None:
    if (branch or decisions) and not run_named:
        raise bad_request(
            "`x-amf-branch`, `x-amf-commit` and `x-amf-discard` need `x-amf-run-id`: branches are of a run, so name the run.",
            code="branch_without_run",
            param="x-amf-branch",
        )


def _check_id(name: str, value: str) -> None:
    if value and (len(value) > _MAX_ID_CHARS or not value.isprintable()):
        raise bad_request(
            f"`{name}` must be at most {_MAX_ID_CHARS} printable characters.", code="invalid_identity", param=name
        )


def _usable(value: str) -> str:
    """A hint that is too long or unprintable is no hint."""
    return value if len(value) <= _MAX_ID_CHARS and value.isprintable() else ""


def _flag(value: str | None) -> bool:
    if value is None or value.lower() in ("false", "0"):
        return False
    if value.lower() in ("true", "1"):
        return True
    raise bad_request(f"`x-amf-final` is `{value}`: send true or false.", code="invalid_flag", param="x-amf-final")

"""The form in which users write a call graph (JSON, YAML, TOML), read into its parts and written back.

    name: coding
    hops:                                 # a mapping by name, or a list of names and mappings with a `name`
      plan:     {pool: llama-3.3-70b, output_tokens: 800}
      retrieve: {kind: embed, pool: bge-m3, after: plan}
      code:     {pool: qwen3-32b, after: [retrieve, {hop: plan, p: 0.2}]}
      verify:   {pool: qwen3-32b, after: code}
    edges:                                # what `after` cannot say, loops above all
      - {from: verify, to: code, p: 0.3, loop: 3}
    groups:
      - {name: drafts, kind: first_success, alternatives: [a, b], p: [0.7, 0.5]}

`p` is a probability (1 if left out), `loop` the most repetitions of an edge that goes back, `k` what a quorum needs;
`model` means `pool`. Everything else raises GraphError with the place and what to write instead.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from amf.core.graph_parts import BranchGroup, Edge, GraphError, GroupKind, Hop, HopKind

Form = Mapping[str, object]
_Kind = TypeVar("_Kind", bound=StrEnum)

_GRAPH_KEYS = ("name", "hops", "edges", "groups")
_HOP_KEYS = ("name", "pool", "model", "kind", "prompt_tokens", "output_tokens", "expected_s", "after")
_AFTER_KEYS = ("hop", "p", "loop")
_EDGE_KEYS = ("from", "to", "p", "loop")
_MAX_COUNT = 10**9
_MAX_NAME_CHARS = 256
_GROUP_KEYS = ("name", "kind", "alternatives", "k", "p")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    name: str
    hops: tuple[Hop, ...]
    edges: tuple[Edge, ...]
    branch_groups: tuple[BranchGroup, ...]


def parts_of(form: object) -> Parts:
    """Reads the form. GraphError for a wrong type, an unknown key or a missing name; `index_of` checks the rest."""
    graph = _fields(form, _GRAPH_KEYS, "the graph")
    hops, edges = [], []
    for entry in _hop_entries(graph.get("hops", ())):
        hop = _hop(entry)
        hops.append(hop)
        edges += [_after(parent, hop.name) for parent in _listed(entry.get("after", ()), f"hop {hop.name!r}: after")]
    edges += [_edge(entry) for entry in _listed(graph.get("edges", ()), "edges")]
    groups = [_group(entry) for entry in _listed(graph.get("groups", ()), "groups")]
    name = _name(graph.get("name"), "the graph: name")
    return Parts(name=name, hops=tuple(hops), edges=tuple(edges), branch_groups=tuple(groups))


def form_of(parts: Parts) -> dict[str, object]:
    """The form of these parts with defaults left out; `parts_of` reads back the same parts."""
    form: dict[str, object] = {"name": parts.name, "hops": [_hop_form(hop) for hop in parts.hops]}
    if parts.edges:
        form["edges"] = [_edge_form(edge) for edge in parts.edges]
    if parts.branch_groups:
        form["groups"] = [_group_form(group) for group in parts.branch_groups]
    return form


def _hop_entries(hops: object) -> Iterator[Form]:
    if isinstance(hops, Mapping):
        for name, body in hops.items():
            yield {**_fields({} if body is None else body, _HOP_KEYS, f"hop {name!r}"), "name": name}
        return
    for entry in _listed(hops, "hops"):
        yield {"name": entry} if isinstance(entry, str) else _fields(entry, _HOP_KEYS, "a hop")


def _hop(entry: Form) -> Hop:
    name = _name(entry.get("name"), "a hop: name")
    where = f"hop {name!r}"
    if "pool" in entry and "model" in entry:
        raise GraphError(f"{where} has both 'pool' and 'model': keep one")
    expected_s = entry.get("expected_s")
    return Hop(
        name=name,
        pool=_text(entry.get("pool", entry.get("model", "")), f"{where}: pool"),
        kind=_kind(HopKind, entry.get("kind", HopKind.GENERATE), where),
        prompt_tokens=_hint_tokens(entry, "prompt_tokens", where),
        output_tokens=_hint_tokens(entry, "output_tokens", where),
        expected_s=None if expected_s is None else _number(expected_s, f"{where}: expected_s"),
    )


def _after(entry: object, target: str) -> Edge:
    if isinstance(entry, str):
        return Edge(source=entry, target=target)
    where = f"hop {target!r}: after"
    fields = _fields(entry, _AFTER_KEYS, where)
    return _weighted(fields, _text(fields.get("hop"), f"{where}: hop"), target, where)


def _edge(entry: object) -> Edge:
    fields = _fields(entry, _EDGE_KEYS, "an edge")
    source, target = _text(fields.get("from"), "an edge: from"), _text(fields.get("to"), "an edge: to")
    return _weighted(fields, source, target, f"edge {source} -> {target}")


def _weighted(fields: Form, source: str, target: str, where: str) -> Edge:
    probability = _number(fields.get("p", 1.0), f"{where}: p")
    max_iterations = _count(fields.get("loop", 0), f"{where}: loop")
    return Edge(source=source, target=target, probability=probability, max_iterations=max_iterations)


def _group(entry: object) -> BranchGroup:
    fields = _fields(entry, _GROUP_KEYS, "a branch group")
    name = _text(fields.get("name"), "a branch group: name")
    where = f"branch group {name!r}"
    alternatives = _listed(fields.get("alternatives", ()), f"{where}: alternatives")
    return BranchGroup(
        name=name,
        kind=_kind(GroupKind, fields.get("kind"), where),
        alternatives=tuple(_text(hop, f"{where}: alternatives") for hop in alternatives),
        k=_count(fields.get("k", 1), f"{where}: k"),
        probabilities=tuple(_number(p, f"{where}: p") for p in _listed(fields.get("p", ()), f"{where}: p")),
    )


def _hop_form(hop: Hop) -> dict[str, object]:
    hints = {"prompt_tokens": hop.prompt_tokens, "output_tokens": hop.output_tokens, "expected_s": hop.expected_s}
    form: dict[str, object] = {"name": hop.name}
    if hop.pool:
        form["pool"] = hop.pool
    if hop.kind is not HopKind.GENERATE:
        form["kind"] = hop.kind.value
    return form | {key: value for key, value in hints.items() if value is not None}


def _edge_form(edge: Edge) -> dict[str, object]:
    form: dict[str, object] = {"from": edge.source, "to": edge.target}
    if edge.probability != 1:
        form["p"] = edge.probability
    if edge.max_iterations:
        form["loop"] = edge.max_iterations
    return form


def _group_form(group: BranchGroup) -> dict[str, object]:
    form: dict[str, object] = {"name": group.name, "kind": group.kind.value, "alternatives": list(group.alternatives)}
    if group.k != 1:
        form["k"] = group.k
    if group.probabilities:
        form["p"] = list(group.probabilities)
    return form


def _fields(entry: object, known: tuple[str, ...], where: str) -> Form:
    if not isinstance(entry, Mapping):
        raise GraphError(f"{where}: expected a mapping with the keys {', '.join(known)}, not {type(entry).__name__}")
    for key in entry:
        if key not in known:
            raise GraphError(f"{where}: unknown key {key!r}; known keys: {', '.join(known)}")
    return entry


def _listed(value: object, where: str) -> list[object]:
    """A list as it is; a single name or mapping as a list of one."""
    if isinstance(value, (str, Mapping)):
        return [value]
    if not isinstance(value, (list, tuple)):
        raise GraphError(f"{where}: expected a list, not {type(value).__name__}")
    return list(value)


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise GraphError(f"{where}: expected a string, not {'nothing' if value is None else repr(value)}")
    return value


def _name(value: object, where: str) -> str:
    """A name that a header can carry, as hops and graphs are named in them."""
    name = _text(value, where)
    if not (name and name.isprintable() and len(name) <= _MAX_NAME_CHARS):
        raise GraphError(f"{where}: write 1 to {_MAX_NAME_CHARS} printable characters")
    return name


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise GraphError(f"{where}: expected a number, not {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise GraphError(f"{where}: the number is out of range") from None


def _count(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise GraphError(f"{where}: expected a whole number, not {value!r}")
    if abs(value) > _MAX_COUNT:
        raise GraphError(f"{where}: the number is larger than {_MAX_COUNT}")
    return value


def _hint_tokens(entry: Form, key: str, where: str) -> int | None:
    value = entry.get(key)
    return None if value is None else _count(value, f"{where}: {key}")


def _kind(kinds: type[_Kind], value: object, where: str) -> _Kind:
    try:
        return kinds(str(value))
    except ValueError:
        known = ", ".join(kind.value for kind in kinds)
        raise GraphError(f"{where}: unknown kind {value!r}; known kinds: {known}") from None

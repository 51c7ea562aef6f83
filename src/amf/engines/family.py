"""Could one worker read the KV memory of another? Nobody moves it between workers here; who plans a fleet wants to know.

KV is a function of the tokens and the weights, kept in a form. Where the weights differ (another model, an adapter, another
number format), the values differ and nothing helps: `none`. Where only the form differs (number format of the KV, block
size, split over GPUs, engine, its version, how it names blocks), the values are the same and somebody could convert them:
`partial`. Where nothing that is known differs, but something that matters is not known: `unknown`. Only `exact` workers
make a family. Hardware is no reason: GPUs of other kinds round a little differently, but read each other's bytes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Grade = Literal["exact", "partial", "unknown", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KvTraits:
    """What decides over a worker's KV. None: neither the engine nor the configuration says.

    `root`: where the weights were loaded from, a path or a name at a hub. `weights`, `tensor_parallel`: as configured, since
    engines do not say. `hash_algorithm`: how the engine names blocks; with which seed, it does not say.
    """

    worker: str
    model: str
    root: str | None = None
    weights: str | None = None
    engine: str | None = None
    version: str | None = None
    kv_format: str | None = None
    block_tokens: int | None = None
    tensor_parallel: int | None = None
    hash_algorithm: str | None = None


@dataclass(frozen=True, slots=True)
class KvMatch:
    grade: Grade
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Family:
    """Workers, by name, each of which could read every other's KV."""

    workers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Apart:
    """Why two families are two, by the first worker of each."""

    one: str
    other: str
    match: KvMatch


_FORM = (
    ("engine", "engines"),
    ("version", "versions"),
    ("kv_format", "KV formats"),
    ("block_tokens", "tokens in a block"),
    ("tensor_parallel", "GPUs that a layer is split over, as configured"),
)


def kv_compatible(a: KvTraits, b: KvTraits) -> KvMatch:
    """How far `b` could use the KV of `a`, and why no further. Symmetric but for the order of names in the reasons."""
    values = [*_other_model(a, b), *_differ("formats of the weights, as configured", a.weights, b.weights)]
    if values:
        return KvMatch("none", tuple(values))
    form, unknown = [], []
    for trait, words in _FORM:
        ours, theirs = getattr(a, trait), getattr(b, trait)
        if trait == "version" and a.engine != b.engine:
            continue
        form += _differ(words, ours, theirs)
        unknown += _not_known(words, (a, ours), (b, theirs))
    form += _differ("names of blocks by", a.hash_algorithm, b.hash_algorithm)
    unknown += _not_known("formats of the weights", (a, a.weights), (b, b.weights))
    if form:
        return KvMatch("partial", (*form, *unknown))
    return KvMatch("unknown", tuple(unknown)) if unknown else KvMatch("exact")


def families(workers: Iterable[KvTraits]) -> tuple[tuple[Family, ...], tuple[Apart, ...]]:
    """The KV families, in the order of their first workers, and for every two of them why they are two."""
    groups: list[list[KvTraits]] = []
    for worker in workers:
        home = next((g for g in groups if all(kv_compatible(member, worker).grade == "exact" for member in g)), None)
        if home is None:
            groups.append([worker])
        else:
            home.append(worker)
    apart = [
        Apart(one[0].worker, other[0].worker, _why_apart(one, other))
        for place, one in enumerate(groups)
        for other in groups[place + 1 :]
    ]
    return tuple(Family(tuple(member.worker for member in group)) for group in groups), tuple(apart)


def _why_apart(one: list[KvTraits], other: list[KvTraits]) -> KvMatch:
    """Of the first two members that do not match: mostly the first of each."""
    return next(match for a in one for b in other if (match := kv_compatible(a, b)).grade != "exact")


def _other_model(a: KvTraits, b: KvTraits) -> list[str]:
    """By where the weights came from, else by the served name. Of a path the last part counts: hosts differ in the rest."""
    if a.root is not None and b.root is not None:
        same = _last_part(a.root) == _last_part(b.root)
        return [] if same else [f"other weights: {_last_part(a.root)}, {_last_part(b.root)}"]
    return [] if a.model == b.model else [f"other models: {a.model}, {b.model}"]


def _last_part(root: str) -> str:
    return root.rstrip("/").rsplit("/", 1)[-1]


def _differ(words: str, ours: object, theirs: object) -> list[str]:
    return [f"{words}: {ours}, {theirs}"] if None not in (ours, theirs) and ours != theirs else []


def _not_known(words: str, *said: tuple[KvTraits, object]) -> list[str]:
    silent = [traits.worker for traits, value in said if value is None]
    return [f"{words}: not known of {', '.join(silent)}"] if silent else []

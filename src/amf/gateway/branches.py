"""Branch groups on the wire: which alternative a call belongs to, and what a client makes of the alternatives of a group.

A branch is a path of groups and alternatives in turn, outermost first: `plan/a`, or `plan/a/code/b` for alternative b of the
group `code` inside plan's alternative a. `plan/a/code` is that inner group. Names hold neither `/`, which parts them, nor `|`,
which parts the paths of a list. All reading is pure; every complaint is a Problem (400).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from amf.core.graph_parts import GroupKind
from amf.core.types import BranchHint
from amf.gateway.body import AlternativeForm, BranchForm, DecisionForm
from amf.gateway.problem import Problem, bad_request

MAX_BRANCH_DEPTH: Final = 4  # groups inside groups
_MAX_PATH_CHARS: Final = 256
_MAX_DECIDED: Final = 256  # alternatives that one request decides on
_FORM = "`group/alternative`, inside another branch `group/alternative/group/alternative`"


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupDecision:
    """What a client makes of alternatives of one group. `group` is a path."""

    group: str
    committed: tuple[str, ...] = ()
    discarded: tuple[str, ...] = ()


def branch_path(said: str | BranchForm) -> str:
    """The path that the body's `branch` stands for, unchecked but for its alternative."""
    return said if isinstance(said, str) else _joined(said.group, said.alternative, "amf.branch.alternative")


def alternative_paths(said: str | AlternativeForm | Sequence[str | AlternativeForm], param: str) -> str:
    """The paths that the body's `commit` or `discard` (`param`) stands for, as the header writes them: `group/a|group/b`."""
    paths: list[str] = []
    for each in [said] if isinstance(said, str | AlternativeForm) else said:
        if isinstance(each, str):
            paths.append(each)
        else:
            paths += [_joined(each.group, name, param) for name in _names(each.alternative)]
    return "|".join(paths)


def check_branch(path: str, param: str) -> str:
    """`path`, which must name an alternative; "" is no branch."""
    if len(path) > _MAX_PATH_CHARS or not path.isprintable():
        raise _invalid(f"`{param}` must be at most {_MAX_PATH_CHARS} printable characters.", param)
    parts = path.split("/") if path else []
    if len(parts) % 2 or any(not part or part != part.strip() or "|" in part for part in parts):
        raise _invalid(f"`{param}` is `{path}`: write it as {_FORM}; names are not empty and hold no `|`.", param)
    if len(parts) > 2 * MAX_BRANCH_DEPTH:
        raise _invalid(f"`{param}` nests {len(parts) // 2} groups: nest at most {MAX_BRANCH_DEPTH}.", param)
    return path


def branch_hint(said: str | BranchForm | None) -> BranchHint | None:
    """What the body's `branch` says of its group; None where it says nothing but the path."""
    if said is None or isinstance(said, str):
        return None
    kinds = [kind.value for kind in GroupKind]
    if said.kind and said.kind not in kinds:
        raise _invalid(f"`amf.branch.kind` is `{said.kind}`: use one of {', '.join(kinds)}.", "amf.branch.kind")
    if said.k < 1:
        raise _invalid(f"`amf.branch.k` is {said.k}: a quorum needs at least 1.", "amf.branch.k")
    if said.k > 1 and said.kind != GroupKind.QUORUM:
        raise _invalid(f"`amf.branch.k` is {said.k}: only kind `quorum` commits several.", "amf.branch.k")
    if said.probability is not None and not 0 <= said.probability <= 1:
        message = f"`amf.branch.probability` is {said.probability:g}: it must lie between 0 and 1."
        raise _invalid(message, "amf.branch.probability")
    return BranchHint(kind=said.kind, k=said.k, probability=said.probability)


def decisions_of_call(commit: str, discard: str) -> tuple[GroupDecision, ...]:
    """What a call decides before it starts, from lists of paths; one decision for each group, in the order of their names'
    first mention."""
    committed, discarded = _by_group(commit, "x-amf-commit"), _by_group(discard, "x-amf-discard")
    groups = dict.fromkeys((*committed, *discarded))
    return tuple(_decision(group, committed.get(group, []), discarded.get(group, [])) for group in groups)


def decision_of(form: DecisionForm) -> GroupDecision:
    """What the body of the commit route decides."""
    committed, discarded = _names(form.commit), _names(form.discard)
    if not (committed or discarded):
        raise _invalid("Nothing is decided: name alternatives in `commit`, in `discard` or in both.", "commit")
    for param, names in (("commit", committed), ("discard", discarded)):
        for name in names:
            check_branch(_joined(form.group, name, param), param)
    return _decision(form.group, committed, discarded)


def _decision(group: str, committed: Sequence[str], discarded: Sequence[str]) -> GroupDecision:
    if len(committed) + len(discarded) > _MAX_DECIDED:
        raise _invalid(f"More than {_MAX_DECIDED} alternatives of `{group}`: decide on fewer at a time.", "commit")
    both = [name for name in committed if name in discarded]
    if both:
        raise _invalid(f"`{both[0]}` of group `{group}` is both committed and discarded: say one of them.", "commit")
    return GroupDecision(
        group=group, committed=tuple(dict.fromkeys(committed)), discarded=tuple(dict.fromkeys(discarded))
    )


def _by_group(paths: str, param: str) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for path in paths.split("|") if paths else []:
        group, _, alternative = check_branch(path.strip(), param).rpartition("/")
        if not group:
            raise _invalid(f"`{param}` has an empty part: write it as {_FORM}, several parted by `|`.", param)
        groups.setdefault(group, []).append(alternative)
    return groups


def _joined(group: str, alternative: str, param: str) -> str:
    if "/" in alternative:
        raise _invalid(f"The alternative `{alternative}` holds a `/`: put the path of its group into `group`.", param)
    return f"{group}/{alternative}"


def _names(said: str | Sequence[str] | None) -> list[str]:
    return [said] if isinstance(said, str) else list(said or ())


def _invalid(message: str, param: str) -> Problem:
    return bad_request(message, code="invalid_branch", param=param)

"""The branch groups of one pipeline: who competes with whom, what became of each, and how likely each is still needed.

A *group* is a set of alternatives of which some are wanted in the end; a *member* is one of them, with the calls made for it.
A branch path names both, outermost first (`group/alternative/group/alternative`), so a member of an inner group belongs to
its outer one too, and shares its fate. Members stand in the order in which their first calls arrived: earlier ones are what
the client would do anyway, later ones are the speculation.

The odds that a member is needed follow from those ahead of it that are undecided and may still succeed:

    first_success   none of those ahead succeeds
    quorum of k     fewer of those ahead succeed than are still to be committed
    best_of         as first_success where the client gives a probability that one is good enough; else all are needed
    predicted       the probability that it is the wanted one, whoever is ahead

A member ahead that has nothing open and of which nothing was heard for `patience_s` is no reason to wait any longer. Inner
odds multiply with those of the outer members. How often members of a group succeed is learned (`state/outcomes.py`), with what
the client says as a prior.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from amf.core.graph import CallGraph
from amf.core.graph_parts import GroupKind
from amf.core.types import BranchHint, Call

_PLAIN = BranchHint()
_MAX_HOPS = 256  # of one member, by which a later call is seen to go on from it

Success = Callable[["Group", "Member"], float]  # odds that a member, once tried, succeeds or is the wanted one


class Fate(StrEnum):
    OPEN = "open"
    COMMITTED = "committed"
    DISCARDED = "discarded"


@dataclass(slots=True)
class Member:
    name: str
    probability: float | None
    fate: Fate = Fate.OPEN
    hops: dict[str, None] = field(default_factory=dict)
    live: dict[str, None] = field(default_factory=dict)  # calls, those of inner groups too
    quiet_s: float | None = None  # since when it has no open call


@dataclass(slots=True)
class Group:
    path: str  # within its pipeline
    kind: GroupKind
    k: int
    members: dict[str, Member] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def missing(self) -> int:
        """How many are still to be committed."""
        return self.k - sum(member.fate is Fate.COMMITTED for member in self.members.values())


class Branches:
    """Of one pipeline. Never more than `max_groups`, of which decided ones go first, nor more than `max_members` in one; a call
    of more than that is a plain call."""

    def __init__(self, max_groups: int, max_members: int) -> None:
        self.groups: dict[str, Group] = {}
        self._max_groups = max_groups
        self._max_members = max_members

    def enter(self, call: Call, hop: str, graph: CallGraph | None) -> None:
        """A call of these branches was let in."""
        for path, alternative, innermost in _levels(call.branch):
            group = self.groups.get(path) or self._open(path, call, graph, innermost)
            member = group.members.get(alternative)
            if member is None:
                if len(group.members) >= self._max_members:
                    return
                probability = _probability(group.name, alternative, graph)
                if innermost and call.branch_hint is not None and call.branch_hint.probability is not None:
                    probability = call.branch_hint.probability
                member = group.members[alternative] = Member(alternative, probability)
            if len(member.hops) < _MAX_HOPS:
                member.hops[hop] = None
            member.live[call.call_id] = None
            member.quiet_s = None

    def left(self, call: Call, now_s: float) -> None:
        """A call of these branches ended, however."""
        for member in self._members(call.branch):
            member.live.pop(call.call_id, None)
            if not member.live:
                member.quiet_s = now_s

    def lost(self, branch: str) -> str:
        """Why this branch, or one around it, has lost, or comes too late; empty if neither."""
        for path, alternative, innermost in _levels(branch):
            group = self.groups.get(path)
            member = group.members.get(alternative) if group else None
            if group is None or (member.fate is not Fate.DISCARDED if member else group.missing > 0):
                continue
            which = "it" if innermost else f"the branch {path}/{alternative} around it"
            decided = f"another alternative of {path} was committed" if group.missing <= 0 else f"{which} was discarded"
            return decided if innermost or group.missing > 0 else f"{decided}, not {which.removeprefix('the ')}"
        return ""

    def decide(self, path: str, committed: Iterable[str], discarded: Iterable[str]) -> list[str]:
        """The client's decision. Returns the open calls of what is lost by it. Names nobody has heard of are remembered, so
        that their calls find out; what was decided before stays so."""
        group = self.groups.get(path)
        if group is None:
            return []
        lost: list[Member] = []
        for name, fate in (*((name, Fate.COMMITTED) for name in committed), *((n, Fate.DISCARDED) for n in discarded)):
            if name not in group.members and len(group.members) < self._max_members:
                group.members[name] = Member(name, None)
            member = group.members.get(name)
            if member is not None and member.fate is Fate.OPEN:
                member.fate = fate
                lost += [member] if fate is Fate.DISCARDED else []
        if group.missing <= 0:
            for member in group.members.values():
                if member.fate is Fate.OPEN:
                    member.fate = Fate.DISCARDED
                    lost.append(member)
        return [call_id for member in lost for call_id in member.live]

    def implied(self, call: Call) -> Iterator[tuple[str, str]]:
        """(group, alternative) that this call commits by going on from its hops, though it is in no branch of the group:
        where its parents are of one alternative only."""
        own = {path for path, _, _ in _levels(call.branch)}
        for path, group in self.groups.items():
            if path in own or group.missing <= 0 or not call.parents:
                continue
            read = [name for name, member in group.members.items() if not member.hops.keys().isdisjoint(call.parents)]
            if len(read) == 1 and len(group.members) > 1:
                yield path, read[0]

    def odds(self, branch: str, success: Success, now_s: float, patience_s: float) -> float:
        """Odds that this branch will be needed; 1 for work that is."""
        odds = 1.0
        for path, alternative, _ in _levels(branch):
            group = self.groups.get(path)
            member = group.members.get(alternative) if group else None
            if group is not None and member is not None and member.fate is Fate.OPEN:
                odds *= _needed(group, member, success, now_s - patience_s)
        return odds

    @classmethod
    def of_ended(cls, groups: Mapping[str, Any]) -> "Branches":
        """What `to_dict` kept of an ended pipeline, to ask whether a branch has lost."""
        found = cls(len(groups), max((len(each["alternatives"]) for each in groups.values()), default=0))
        for path, kept in groups.items():
            group = found.groups[path] = Group(path, GroupKind(kept["kind"]), kept["k"])
            for name, member in kept["alternatives"].items():
                group.members[name] = Member(name, None, Fate(member["fate"]))
        return found

    def to_dict(self) -> dict[str, object]:
        return {
            path: {
                "kind": group.kind.value,
                "k": group.k,
                "alternatives": {
                    name: {"fate": member.fate.value, "open_calls": len(member.live)}
                    for name, member in group.members.items()
                },
            }
            for path, group in self.groups.items()
        }

    def check_invariants(self, live: Iterable[Call]) -> None:
        open_calls = {call.call_id: call for call in live}
        assert len(self.groups) <= self._max_groups
        for path, group in self.groups.items():
            assert group.path == path and len(group.members) <= self._max_members
            for name, member in group.members.items():
                assert member.live.keys() <= open_calls.keys(), "an ended call is still of a branch"
                assert member.fate is not Fate.DISCARDED or not member.live, "a lost branch has an open call"
                assert all(f"{path}/{name}/" in f"{open_calls[each].branch}/" for each in member.live)

    def _open(self, path: str, call: Call, graph: CallGraph | None, innermost: bool) -> Group:
        name = path.rpartition("/")[2]
        declared = next((each for each in graph.branch_groups if each.name == name), None) if graph else None
        hint = (call.branch_hint if innermost else None) or _PLAIN
        kind = GroupKind(hint.kind) if hint.kind else declared.kind if declared else GroupKind.FIRST_SUCCESS
        group = Group(path, kind, max(1, hint.k if hint.kind or not declared else declared.k))
        self.groups[path] = group
        if len(self.groups) > self._max_groups:
            decided = (each for each, known in self.groups.items() if known.missing <= 0)
            del self.groups[next(decided, next(iter(self.groups)))]
        return group

    def _members(self, branch: str) -> Iterator[Member]:
        for path, alternative, _ in _levels(branch):
            group = self.groups.get(path)
            if group is not None and alternative in group.members:
                yield group.members[alternative]


def _levels(branch: str) -> Iterator[tuple[str, str, bool]]:
    """(path of the group, alternative, whether it is the innermost), outermost first."""
    if not branch:
        return
    parts = branch.split("/")
    for end in range(1, len(parts), 2):
        yield "/".join(parts[:end]), parts[end], end + 2 > len(parts) - 1


def _probability(group: str, alternative: str, graph: CallGraph | None) -> float | None:
    """As the graph declares it."""
    for declared in graph.branch_groups if graph else ():
        if declared.name == group and declared.probabilities and alternative in declared.alternatives:
            return declared.probabilities[declared.alternatives.index(alternative)]
    return None


def _needed(group: Group, member: Member, success: Success, silent_since_s: float) -> float:
    if group.kind is GroupKind.PREDICTED:
        return success(group, member)
    if group.kind is GroupKind.BEST_OF and member.probability is None:
        return 1.0
    ahead: list[float] = []
    for other in group.members.values():
        if other is member:
            break
        if other.fate is Fate.OPEN and (other.quiet_s is None or other.quiet_s > silent_since_s):
            ahead.append(success(group, other))
    return fewer_than(group.missing, ahead)


def fewer_than(count: int, odds: Sequence[float]) -> float:
    """The odds that fewer than `count` of these independent trials succeed."""
    if count > len(odds):
        return 1.0
    by_successes = [1.0] + [0.0] * max(count - 1, 0)  # odds of exactly 0, 1, ... successes; more are cut off
    for each in odds:
        for successes in range(len(by_successes) - 1, -1, -1):
            before = by_successes[successes - 1] * each if successes else 0.0
            by_successes[successes] = by_successes[successes] * (1.0 - each) + before
    return sum(by_successes) if count > 0 else 0.0

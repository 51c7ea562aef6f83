"""What a request may say of branch groups: paths, hints about a group, decisions; and what is turned away."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from amf.core.types import BranchHint
from amf.gateway.body import DecisionForm, parse_body
from amf.gateway.branches import MAX_BRANCH_DEPTH, GroupDecision, check_branch, decision_of, decisions_of_call
from amf.gateway.identity import Identity, read_identity
from amf.gateway.problem import Problem

DEEPEST = "/".join(["g/a"] * MAX_BRANCH_DEPTH)


def read(headers: dict[str, str] | None = None, **amf: Any) -> Identity:
    """Identity of a request of the run r."""
    body = msgspec.json.encode({"model": "m", "amf": {"run_id": "r", **amf}})
    return read_identity(CIMultiDict(headers or {}), parse_body(body))


def problem(headers: dict[str, str] | None = None, **amf: Any) -> Problem:
    with pytest.raises(Problem) as caught:
        read(headers, **amf)
    return caught.value


@pytest.mark.parametrize(
    ("said", "path", "hint"),
    [
        ("drafts/a", "drafts/a", None),
        ("tree/a/leaf/b", "tree/a/leaf/b", None),
        (DEEPEST, DEEPEST, None),
        ("", "", None),
        ({"group": "drafts", "alternative": "a"}, "drafts/a", BranchHint()),
        (
            {"group": "tree/a/leaf", "alternative": "b", "kind": "quorum", "k": 2},
            "tree/a/leaf/b",
            BranchHint(kind="quorum", k=2),
        ),
        (
            {"group": "next", "alternative": "test", "kind": "predicted", "probability": 0.7},
            "next/test",
            BranchHint(kind="predicted", probability=0.7),
        ),
    ],
)
def test_a_branch_is_a_path_and_may_say_what_its_group_is(said: Any, path: str, hint: BranchHint | None) -> None:
    identity = read(branch=said)
    assert (identity.branch, identity.branch_hint) == (path, hint)


def test_header_metadata_baggage_and_body_name_the_same_branch() -> None:
    assert read({"x-amf-branch": "g/a/h/b"}).branch == "g/a/h/b"
    assert read({"baggage": "amf.run=r,amf.branch=g/a"}).branch == "g/a"
    both = read({"x-amf-branch": "g/a"}, branch={"group": "g", "alternative": "a", "kind": "best_of"})
    assert (both.branch, both.branch_hint) == ("g/a", BranchHint(kind="best_of"))
    assert problem({"x-amf-branch": "g/a"}, branch="g/b").code == "contradictory_identity"
    body = {"model": "m", "metadata": {"amf_run_id": "r", "amf_branch": "g/a", "amf_commit": "h/b"}}
    identity = read_identity(CIMultiDict(), parse_body(msgspec.json.encode(body)))
    assert (identity.branch, identity.decisions) == ("g/a", (GroupDecision(group="h", committed=("b",)),))


@pytest.mark.parametrize(
    "said",
    ["g", "g/", "/a", "g//a/b", "g/a/h", "g/a /h/b", "g/a|b", "g/\x07", f"{DEEPEST}/g/a", "g/" + "a" * 300,
     {"group": "g/a", "alternative": "b"}, {"group": "", "alternative": "a"}, {"group": "g", "alternative": ""},
     {"group": "g", "alternative": "a/h/b"},
     {"group": "g", "alternative": "a", "kind": "best"},
     {"group": "g", "alternative": "a", "kind": "quorum", "k": 0},
     {"group": "g", "alternative": "a", "kind": "best_of", "k": 2},
     {"group": "g", "alternative": "a", "k": 2},
     {"group": "g", "alternative": "a", "probability": 1.01},
     {"group": "g", "alternative": "a", "probability": -0.01}],
)  # fmt: skip
def test_what_is_no_branch_is_turned_away(said: Any) -> None:
    found = problem(branch=said)
    assert (found.status, found.code) == (400, "invalid_branch") and len(found.message) > 20


def test_complaints_name_the_key_and_the_remedy() -> None:
    found = problem(branch={"group": "g", "alternative": "a", "kind": "best"})
    assert found.param == "amf.branch.kind" and "first_success, best_of, quorum, predicted" in found.message
    assert str(MAX_BRANCH_DEPTH) in problem(branch=f"{DEEPEST}/g/a").message
    assert problem(discard={"group": "g", "alternative": "a/b"}).param == "amf.discard"
    assert problem(branch={"group": "g", "alternative": "a", "odds": 1}).code == "invalid_field"
    assert problem(branch={"group": "g"}).code == "invalid_field"
    assert problem(branch=["g", "a"]).code == "invalid_field"


@pytest.mark.parametrize("headers", [{"x-amf-branch": "g/a"}, {"x-amf-commit": "g/a"}, {"x-amf-discard": "g/a"}])
def test_branches_are_of_a_named_run(headers: dict[str, str]) -> None:
    """A session names a run for its calls, but parents and branches name hops of a run: they want it said."""
    for more in ({}, {"x-amf-session-id": "s"}, {"session-id": "s"}):
        with pytest.raises(Problem) as caught:
            read_identity(CIMultiDict({**headers, **more}), parse_body(b'{"model": "m"}'))
        assert caught.value.code == "branch_without_run" and "x-amf-run-id" in caught.value.message
    with pytest.raises(Problem) as caught:  # the doctor knows a gateway by this answer
        read_identity(CIMultiDict({"x-amf-branch": "none"}), parse_body(b'{"model": "m"}'))
    assert caught.value.code == "invalid_branch"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"commit": "g/a"}, [("g", "a", "")]),
        ({"commit": "g/a|g/b", "discard": "g/c"}, [("g", "a b", "c")]),
        ({"commit": {"group": "g", "alternative": "a"}}, [("g", "a", "")]),
        ({"commit": {"group": "g", "alternative": ["a", "b", "a"]}}, [("g", "a b", "")]),
        ({"commit": ["g/a", {"group": "g/a/h", "alternative": "x"}]}, [("g", "a", ""), ("g/a/h", "x", "")]),
        ({"discard": ["h/a", "g/b"], "commit": "g/a"}, [("g", "a", "b"), ("h", "", "a")]),
        ({"commit": "", "discard": []}, []),
    ],
)
def test_a_call_may_decide_before_it_starts(said: dict[str, Any], expected: list[tuple[str, str, str]]) -> None:
    decisions = [(each.group, " ".join(each.committed), " ".join(each.discarded)) for each in read(**said).decisions]
    assert decisions == expected


def test_headers_decide_too() -> None:
    identity = read({"x-amf-commit": "g/a | g/b", "x-amf-discard": "h/c"})
    assert identity.decisions == (
        GroupDecision(group="g", committed=("a", "b")),
        GroupDecision(group="h", discarded=("c",)),
    )


@pytest.mark.parametrize(
    ("commit", "discard"), [("g", ""), ("g/a|", ""), ("g/a||g/b", ""), ("g/a/b", ""), ("", "|"), ("g/a", "g/a")]
)
def test_decisions_that_make_no_sense(commit: str, discard: str) -> None:
    with pytest.raises(Problem) as caught:
        decisions_of_call(commit, discard)
    assert caught.value.code == "invalid_branch"


@pytest.mark.parametrize(
    "form",
    [{"group": "g"}, {"group": "g", "commit": []}, {"group": "", "commit": "a"}, {"group": "g/a", "commit": "b"},
     {"group": "g", "commit": "a/h/b"}, {"group": "g", "commit": ["a", ""]}, {"group": "g", "commit": "a", "discard": "a"},
     {"group": "g", "discard": [str(n) for n in range(300)]}],
)  # fmt: skip
def test_what_the_route_does_not_take(form: dict[str, Any]) -> None:
    with pytest.raises(Problem) as caught:
        decision_of(msgspec.convert(form, DecisionForm))
    assert caught.value.code == "invalid_branch"


def test_the_route_takes_one_or_several() -> None:
    form = DecisionForm(group="g/a/h", commit="x", discard=["y", "z"])
    assert decision_of(form) == GroupDecision(group="g/a/h", committed=("x",), discarded=("y", "z"))


names = st.text(st.characters(exclude_characters="/|", categories=("L", "N", "P")), min_size=1, max_size=8)


@given(st.lists(st.tuples(names, names), min_size=1, max_size=MAX_BRANCH_DEPTH))
def test_text_and_object_name_the_same_branch(levels: list[tuple[str, str]]) -> None:
    path = "/".join(f"{group}/{alternative}" for group, alternative in levels)
    group, _, alternative = path.rpartition("/")
    assert check_branch(path, "p") == path
    assert read(branch=path).branch == read(branch={"group": group, "alternative": alternative}).branch == path
    decided = GroupDecision(group=group, committed=(alternative,))
    assert read(commit=path).decisions == (decided,) == (decision_of(DecisionForm(group=group, commit=alternative)),)


@given(st.text(alphabet="ga/| \x00é", max_size=30), st.text(alphabet="ga/|", max_size=30))
def test_any_text_is_read_or_turned_away(one: str, other: str) -> None:
    try:
        decisions = decisions_of_call(one, other)
    except Problem as found:
        assert found.code == "invalid_branch"
        return
    for each in decisions:
        assert each.committed or each.discarded
        for name in (*each.committed, *each.discarded):
            assert check_branch(f"{each.group}/{name}", "p")

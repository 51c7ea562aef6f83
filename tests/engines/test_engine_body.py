"""Members that an adapter puts into a body."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amf.engines.body import with_members

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(
    st.dictionaries(st.text(), JSON),
    st.dictionaries(st.sampled_from("abc"), JSON),
    st.sampled_from(["", " ", "\r\n\t"]),
)
def test_it_is_the_object_with_the_members_and_all_before_them_is_as_it_was(before, members, space):
    body = (space + json.dumps(before, indent=1 if space else None) + space).encode()
    after = with_members(body, members)
    assert json.loads(after) == {**before, **members}
    assert after.startswith(body.rstrip()[:-1].rstrip())


@pytest.mark.parametrize("body", [b"", b"[1]", b'"}"', b"}", b"nonsense", b'[{"a": 1}]'])
def test_what_is_no_object_is_left_to_the_engine(body):
    assert with_members(body, {"priority": 1}) == body

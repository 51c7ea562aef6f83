"""Prefix keys of text prompts, and recognising runs by them."""

import msgspec
import pytest

from amf.engines.keys import token_keys
from amf.gateway.body import Body, Message, outgoing, parse_body
from amf.gateway.derive import DerivedRuns, Trail, trail
from amf.gateway.intake import _salt
from amf.gateway.pools import Pool
from amf.gateway.prefixes import BLOCK_BYTES, BytesPerToken, chain_messages, chain_text, token_prefix


def messages(*turns: tuple[str, object], **more: object) -> list[Message]:
    raw = [{"role": role, "content": content, **more} for role, content in turns]
    return msgspec.json.decode(msgspec.json.encode(raw), type=list[Message])


LONG = "abcdefgh" * 300


def test_a_growing_conversation_keeps_every_key() -> None:
    first = chain_messages(messages(("system", LONG), ("user", "hello")))
    second = chain_messages(messages(("system", LONG), ("user", "hello"), ("assistant", "hi"), ("user", "more")))
    assert second.keys[: len(first.keys)] == first.keys
    assert second.ends_bytes[: len(first.ends_bytes)] == first.ends_bytes
    assert second.boundaries[:2] == first.boundaries
    assert first.keys[-1] == first.boundaries[-1]
    assert len(first.keys) == -(-(len(LONG) + 9) // BLOCK_BYTES) + 1


@pytest.mark.parametrize(
    "other",
    [
        messages(("system", LONG), ("user", "hello!")),
        messages(("system", LONG), ("assistant", "hello")),
        messages(("system", LONG), ("user", "hello"), name="bob"),
        messages(("system", LONG[1:]), ("user", "hello")),
    ],
)
def test_whatever_the_engine_would_see_changes_the_end(other: list[Message]) -> None:
    assert chain_messages(messages(("system", LONG), ("user", "hello"))).keys[-1] != chain_messages(other).keys[-1]


def test_where_text_is_cut_into_messages_matters() -> None:
    assert (
        chain_messages(messages(("user", "ab"))).keys[-1]
        != chain_messages(messages(("user", "a"), ("user", "b"))).keys[-1]
    )


def test_parts_and_tools_and_salt_count() -> None:
    parts = messages(("user", [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "u1"}}]))
    other = messages(("user", [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "u2"}}]))
    assert chain_messages(parts).keys != chain_messages(other).keys
    plain = messages(("user", "look"))
    assert chain_messages(messages(("user", [{"type": "text", "text": "look"}]))).keys == chain_messages(plain).keys
    seen = {chain_messages(plain, tools, salt).keys for tools in (b"", b'[{"a":1}]') for salt in ("", "tenant")}
    assert len(seen) == 4


def test_the_billing_line_of_claude_code_does_not_break_the_prefix() -> None:
    one = messages(("system", "x-anthropic-billing-header: cc_version=1\nYou are Claude"), ("user", "q"))
    two = messages(("system", "x-anthropic-billing-header: cc_version=2\nYou are Claude"), ("user", "q"))
    assert chain_messages(one).keys == chain_messages(two).keys


def test_lengths_in_tokens_follow_what_is_learned_and_stay_increasing() -> None:
    chain = chain_messages(messages(*[("user", "x")] * 5, ("user", LONG)))
    prefix = chain.prefix(400.0)
    assert all(a < b for a, b in zip(prefix.ends, prefix.ends[1:], strict=False))
    assert prefix.total_tokens == prefix.ends[-1]
    ratio = BytesPerToken()
    for _ in range(200):
        ratio.learn(3000, 1000)
    assert ratio.value == pytest.approx(3.0, abs=1e-3)
    ratio.learn(0, 10)
    assert ratio.value == pytest.approx(3.0, abs=1e-3)


def test_plain_text_and_tokens() -> None:
    assert chain_text(LONG).keys == chain_text(LONG + "tail").keys[:2]
    prefix = token_prefix(list(range(40)), 16, "")
    assert (prefix.keys, list(prefix.ends), prefix.total_tokens) == (token_keys(range(40), 16), [16, 32], 40)
    with pytest.raises(ValueError):
        token_prefix([1, -2, 3], 2)


def test_bodies_keep_their_bytes() -> None:
    raw = b'{ "model":"m" ,"messages" : [{"role":"user","content":"\\u00e9 \xc3\xa9"}],"x":1.0e2,"big":12345678901234567890}'
    assert outgoing(raw, parse_body(raw), trusted=False) is raw
    marked = raw[:-1] + b',"amf":{"run_id":"r"},"priority":-5,"nvext":{"a":1}}'
    forwarded = outgoing(marked, parse_body(marked), trusted=False)
    assert b"amf" not in forwarded and b"priority" not in forwarded and b"nvext" not in forwarded
    for kept in (b'[{"role":"user","content":"\\u00e9 \xc3\xa9"}]', b"1.0e2", b"12345678901234567890"):
        assert kept in forwarded
    trusted = outgoing(marked, parse_body(marked), trusted=True)
    assert b"-5" in trusted and b"run_id" not in trusted


# Derived identity.


def seen(*contents: str, tenant: str = "", retried: bool = False) -> Trail:
    turns = [("system", "same for all")] + [("user" if i % 2 == 0 else "assistant", c) for i, c in enumerate(contents)]
    body = Body(messages=messages(*turns))
    assert body.messages is not None
    return trail(body.messages, chain_messages(body.messages).boundaries, tenant, retried=retried)


def test_a_continued_conversation_is_the_same_run() -> None:
    runs = DerivedRuns()
    assert runs.find(seen("q1"), 0.0) is None
    runs.note(seen("q1"), "A", 0.0)
    assert runs.find(seen("q1", "a1", "q2"), 1.0) == "A"
    assert runs.find(seen("q9", "a1", "q2"), 1.0) is None


def test_same_first_prompts_from_many_clients_are_many_runs() -> None:
    runs = DerivedRuns()
    for name in ("A", "B", "C"):
        assert runs.find(seen("q1"), 0.0) is None
        runs.note(seen("q1"), name, 0.0)
    continued = []
    for i in range(3):
        step = seen("q1", f"a{i}", "next")
        run = runs.find(step, 1.0)
        assert run is not None
        runs.note(step, run, 1.0)
        continued.append(run)
    assert sorted(continued) == ["A", "B", "C"]
    for i, run in enumerate(continued):
        assert runs.find(seen("q1", f"a{i}", "next", "b", "third"), 2.0) == run


def test_fan_out_from_one_prompt_stays_one_run() -> None:
    runs = DerivedRuns()
    runs.note(seen("q1"), "A", 0.0)
    for branch in ("x", "y", "z"):
        step = seen("q1", "plan", branch)
        assert runs.find(step, 1.0) == "A"
        runs.note(step, "A", 1.0)


def test_a_cut_history_is_found_by_its_root_while_the_run_is_active() -> None:
    runs = DerivedRuns(idle_s=100.0)
    runs.note(seen("task", "a1", "q2", "a2", "q3"), "A", 0.0)
    assert runs.find(seen("task", "summary", "q4"), 50.0) == "A"
    assert runs.find(seen("task", "summary", "q4"), 500.0) is None
    assert runs.find(seen("task"), 50.0) is None


def test_retries_join_the_run_of_the_first_try_and_tenants_stay_apart() -> None:
    runs = DerivedRuns()
    runs.note(seen("q1"), "A", 0.0)
    assert runs.find(seen("q1", retried=True), 1.0) == "A"
    assert runs.find(seen("q1", "a", "q2", tenant="t"), 1.0) is None


def test_memory_is_bounded() -> None:
    runs = DerivedRuns(max_entries=10)
    for i in range(50):
        runs.note(seen(f"q{i}"), f"R{i}", 0.0)
    assert runs.find(seen("q0", "a", "b"), 0.0) is None
    assert runs.find(seen("q49", "a", "b"), 0.0) == "R49"


def test_an_adapter_of_a_pool_shares_no_prefix_with_its_base_model() -> None:
    pool = Pool("base", None)
    raw = b'{"model": "%s", "messages": [{"role": "user", "content": "hello"}]}'
    salts = [_salt(parse_body(raw % name), pool) for name in (b"base", b"adapter-a", b"adapter-b")]
    assert salts[0] == "" and len(set(salts)) == 3

from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from amf.emulator.chat import content_text, render_chat
from amf.emulator.protocol import CalledFunction, Function, Message, Tool, ToolCall
from amf.emulator.tokenizer import block_keys, count, decode, encode, from_ids, salt_key, to_ids

MESSAGES = st.lists(
    st.builds(Message, role=st.sampled_from(["system", "user", "assistant"]), content=st.text(max_size=20)), max_size=5
)


@given(st.text())
def test_text_survives_encoding_and_ids(text: str):
    tokens = encode(text)
    assert decode(tokens) == text
    assert from_ids(to_ids(tokens)) == tokens
    assert count(tokens) == -(-len(text.encode()) // 4)


def test_an_id_is_four_bytes_little_endian():
    assert to_ids(encode("abcde")) == [0x64636261, 0xFFFFFF65]
    assert decode(encode("a\0b\0")) == "a\0b\0"


@pytest.mark.parametrize("ids", [[-1], [2**32]])
def test_ids_out_of_range_are_refused(ids: list[int]):
    with pytest.raises(ValueError, match="0\\.\\."):
        from_ids(ids)


@given(MESSAGES, MESSAGES)
def test_equal_first_messages_give_equal_first_tokens(first: list[Message], more: list[Message]):
    head, whole = render_chat(first), render_chat(first + more)
    assert whole.startswith(head[:-4])  # all but the mark that asks for the answer


def test_an_answer_sent_back_has_the_tokens_it_was_generated_with():
    question = Message(role="user", content="what now?")
    answer = "Do this, then that"
    again = [question, Message(role="assistant", content=answer), Message(role="user", content="and then?")]
    assert render_chat(again).startswith(render_chat([question]) + encode(answer))


def test_tool_calls_are_rendered_without_ids_and_however_the_client_spaced_them():
    def call(call_id: str, arguments: str) -> Message:
        function = CalledFunction(name="look", arguments=arguments)
        return Message(role="assistant", tool_calls=[ToolCall(id=call_id, function=function)])

    assert render_chat([call("1", '{"a":1,"b":2}')]) == render_chat([call("2", '{"b": 2, "a": 1}')])
    assert render_chat([call("1", '{"a":1}')]) != render_chat([call("1", '{"a":2}')])
    assert render_chat([call("1", "not json")]) != render_chat([call("1", "")])


def test_tools_and_tool_results_are_part_of_the_prompt():
    user = Message(role="user", content="hi")
    tool = Tool(function=Function(name="look", parameters={"type": "object"}))
    assert decode(render_chat([user], [tool])).startswith('[{"function":{"name":"look"')
    results = [Message(role="tool", tool_call_id=name, content="42") for name in ("a", "b")]
    assert render_chat([results[0]]) != render_chat([results[1]])


def test_content_parts():
    parts = Message(role="user", content=[{"type": "text", "text": "one "}, {"type": "text", "text": "two"}])
    assert content_text(parts) == "one two"
    assert decode(render_chat([parts])) == "one two"


@given(st.binary(max_size=800), st.integers(1, 9), st.text(max_size=5))
def test_keys_are_chained_hashes_of_full_blocks(raw: bytes, block_tokens: int, salt: str):
    tokens = raw[: len(raw) // 4 * 4]
    size = 4 * block_tokens
    blocks = [tokens[i : i + size] for i in range(0, len(tokens) // size * size, size)]
    chain = reduce(lambda keys, block: [*keys, xxh3_64_intdigest(block, keys[-1])], blocks, [salt_key(salt)])[1:]
    assert block_keys(tokens, block_tokens, salt) == chain
    assert block_keys(tokens, block_tokens, salt, known=chain[: len(chain) // 2]) == chain


def test_a_salt_changes_every_key():
    tokens = encode("word" * 64)
    assert not set(block_keys(tokens, 16)) & set(block_keys(tokens, 16, "tenant"))

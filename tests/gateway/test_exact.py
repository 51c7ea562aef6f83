"""Exact prompts from a local tokenizer and its chat template."""

import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from gateway_kit import FakeEngine, WatchedFabric, fake_engine, gateway_of
from tokenizers import Tokenizer, models, pre_tokenizers

from amf.config import PoolConfig
from amf.core.events import CallArrived
from amf.gateway.exact import LocalEncoder

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}> {{ m.content }} "
    "{% if m.tool_calls %}{{ m.tool_calls[0].function.arguments.city }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
WORDS = ["<s>", "<user>", "<system>", "<assistant>", "hello", "world", "paris", "[UNK]", "You", "help."]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": {"content": "<s>"}, "chat_template": TEMPLATE}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


async def words(encoder: LocalEncoder, **body: Any) -> list[str] | None:
    ids = await encoder.encode(json.dumps(body).encode())
    return None if ids is None else [WORDS[i] for i in ids]


async def test_messages_are_rendered_as_the_engine_would(directory: Path) -> None:
    encoder = LocalEncoder(directory)
    plain = {"role": "user", "content": "hello world"}
    assert await words(encoder, messages=[plain]) == ["<s>", "<user>", "hello", "world", "<assistant>"]
    parts = {"role": "user", "content": [{"type": "text", "text": "hello"}, {"type": "text", "text": "world"}]}
    assert await words(encoder, messages=[parts]) == await words(encoder, messages=[plain])
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"city": "paris"}'}}
    turn = {"role": "assistant", "content": "hello", "tool_calls": [call]}
    assert await words(encoder, messages=[turn]) == ["<s>", "<assistant>", "hello", "paris", "<assistant>"]
    assert await words(encoder, prompt="hello world") == ["hello", "world"]


async def test_what_cannot_be_rendered_falls_back(directory: Path) -> None:
    encoder = LocalEncoder(directory)
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
    assert await words(encoder, messages=[image]) is None
    config = {"chat_template": "{{ raise_exception('roles must alternate') }}"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    assert await words(LocalEncoder(directory), messages=[{"role": "user", "content": "hello"}]) is None


def test_a_useless_directory_is_an_error_at_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        LocalEncoder(tmp_path)


@pytest.mark.parametrize("tokenizer", ["local", "engine"])
async def test_a_pool_with_exact_prompts(tokenizer: str, directory: Path) -> None:
    pools = {"tiny": PoolConfig(tokenizer=str(directory) if tokenizer == "local" else "engine")}
    fabric = WatchedFabric()
    async with fake_engine() as engine, gateway_of(engine, fabric=fabric, pools=pools) as (_, client):
        assert (await client.chat(" ".join(["hello"] * 100))).status == 200
        arrived = next(event for event in fabric.events if isinstance(event, CallArrived))
        expected = 6 + 100 if tokenizer == "local" else len("You help.") + 599
        assert arrived.call.prefix.total_tokens == expected
        assert list(arrived.call.prefix.ends)[:2] == [16, 32]


@pytest.mark.parametrize("answer", [None, {"tokens": []}, {"tokens": 7}, []])
async def test_an_engine_that_cannot_tokenize_is_served_in_text_mode(answer: Any) -> None:
    """No answer, or that of an engine which found no prompt in the question."""

    class NoTokenizer(FakeEngine):
        async def tokenize(self, request: Any) -> Any:
            if answer is None:
                raise RuntimeError
            return web.json_response(answer)

    pools = {"tiny": PoolConfig(tokenizer="engine")}
    fabric = WatchedFabric()
    async with fake_engine(NoTokenizer()) as engine, gateway_of(engine, fabric=fabric, pools=pools) as (_, client):
        assert (await client.chat("hello " * 1000)).status == 200
    arrived = next(event for event in fabric.events if isinstance(event, CallArrived))
    assert arrived.call.prompt_tokens > 1000

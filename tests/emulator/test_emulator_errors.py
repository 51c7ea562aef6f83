"""Bad input gets the engine's own error and never reaches the worker."""

from typing import Any

import openai
import pytest
from emulator_kit import chat, served

HELLO = chat("hello")


def json_schema(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"schema": schema}}


TOOLS = [{"type": "function", "function": {"name": "f"}}]


@pytest.mark.parametrize(
    ("path", "body", "status", "word"),
    [
        ("/v1/chat/completions", b"{", 400, "JSON"),
        ("/v1/chat/completions", b'{"model": "\xff"}', 400, "JSON"),
        ("/v1/chat/completions", b'"text"', 400, "object"),
        ("/v1/chat/completions", {}, 400, "messages"),
        ("/v1/chat/completions", {"messages": []}, 400, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": 7}]}, 400, "content"),
        ("/v1/chat/completions", {**HELLO, "model": "gpt-9"}, 404, "gpt-9"),
        ("/v1/chat/completions", {**HELLO, "max_tokens": 0}, 400, "max_tokens must be at least 1"),
        ("/v1/chat/completions", {**HELLO, "max_completion_tokens": 900_000}, 400, "context"),
        ("/v1/chat/completions", {**HELLO, "max_tokens": 3, "min_tokens": 4}, 400, "min_tokens"),
        ("/v1/chat/completions", {**HELLO, "n": 0}, 400, "n must be"),
        ("/v1/chat/completions", {**HELLO, "cache_salt": ""}, 400, "cache_salt"),
        ("/v1/chat/completions", {**HELLO, "tool_choice": "required"}, 400, "tool_choice"),
        ("/v1/chat/completions", {**HELLO, "tools": TOOLS, "tool_choice": {"function": {"name": "g"}}}, 400, "'g'"),
        ("/v1/chat/completions", {**HELLO, "tools": TOOLS, "tool_choice": {"function": 7}}, 400, "None"),
        ("/v1/chat/completions", {**HELLO, "response_format": {"type": []}}, 400, "response_format"),
        ("/v1/chat/completions", {**HELLO, "response_format": json_schema({"properties": 5})}, 400, "malformed"),
        (
            "/v1/chat/completions",
            {**HELLO, "response_format": json_schema({"minimum": "x", "type": "number"})},
            400,
            "malformed",
        ),
        ("/v1/chat/completions", b'{"messages": [], "x": ' + b"[" * 50_000, 400, "JSON"),
        ("/v1/chat/completions", chat("word" * 1001), 400, "context"),
        ("/v1/completions", {"prompt": ""}, 400, "empty"),
        ("/v1/completions", {"prompt": []}, 400, "empty"),
        ("/v1/completions", {"prompt": ["a", ""]}, 400, "empty"),
        ("/v1/completions", {"prompt": "a", "n": 20_000}, 400, "n must be"),
        ("/v1/completions", {"prompt": "a", "n": 2, "temperature": 0}, 400, "n must be 1"),
        ("/v1/completions", {"prompt": "a", "temperature": -1}, 400, "temperature"),
        ("/v1/completions", {"prompt": "a", "temperature": "warm"}, 400, "temperature"),
        ("/v1/completions", {"prompt": "a", "top_p": 0}, 400, "top_p"),
        ("/v1/completions", {"prompt": "a", "presence_penalty": 3}, 400, "presence_penalty"),
        ("/v1/completions", {"prompt": "a", "frequency_penalty": -3}, 400, "frequency_penalty"),
        ("/v1/completions", {"prompt": "a", "seed": 2**70}, 400, "seed"),
        ("/v1/completions", {"prompt": "a", "stop": ""}, 400, "stop"),
        ("/v1/completions", {"prompt": "a", "stop": ["a", "b", "c", "d", "e"]}, 400, "stop"),
        ("/v1/completions", {"prompt": "a", "stream_options": {"include_usage": True}}, 400, "stream_options"),
        ("/v1/completions", {"prompt": "a", "cache_salt": "a/b"}, 400, "cache_salt"),
        ("/v1/completions", {"prompt": "a", "cache_salt": "a" * 129}, 400, "cache_salt"),
        ("/v1/completions", {"prompt": [1, "b"]}, 400, "mixes"),
        ("/v1/completions", {"prompt": [-1]}, 400, "token ids"),
        ("/v1/completions", {"prompt": {}}, 400, "prompt"),
        ("/v1/embeddings", {"input": []}, 400, "empty"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, 400, "encoding_format"),
        ("/v1/embeddings", {"input": "a", "dimensions": 0}, 400, "dimensions"),
        ("/v1/embeddings", {"input": ["word" * 1001]}, 400, "1001"),
        ("/v1/rerank", {"query": "a", "documents": []}, 400, "documents"),
        ("/v1/rerank", {"query": "a", "documents": [{"title": "t"}]}, 400, "document"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": -1}, 400, "top_n"),
        ("/tokenize", {}, 400, "prompt"),
        ("/detokenize", {"tokens": [2**40]}, 400, "token ids"),
    ],
)
async def test_bad_requests(path: str, body: Any, status: int, word: str):
    async with served(max_model_tokens=1000) as (emulator, client):
        content: Any = {"data": body} if isinstance(body, bytes) else {"json": body}
        async with client.post(path, **content) as response:
            error = (await response.json())["error"]
            assert response.status == error["code"] == status
        stats = emulator.worker.stats
        assert stats.prompt_tokens == stats.finished == stats.running == stats.waiting == 0
    assert word in error["message"] and set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(("method", "path", "status"), [("POST", "/v1/nowhere", 404), ("GET", "/v1/completions", 405)])
async def test_what_is_no_route_is_said_as_vllms_framework_says_it(method: str, path: str, status: int):
    async with served() as (_, client), client.request(method, path, json={}) as response:
        assert response.status == status
        assert await response.json() == {"detail": response.reason}


@pytest.mark.parametrize("headers", [{"x-emulate-output-tokens": "0"}, {"x-emulate-output-tokens": "many"}])
async def test_bad_headers(headers: dict[str, str]):
    async with served() as (_, client), client.post("/v1/chat/completions", json=HELLO, headers=headers) as response:
        assert response.status == 400
        assert next(iter(headers)) in (await response.json())["error"]["message"]


async def test_the_openai_client_recognises_the_errors():
    async with (
        served() as (emulator, _),
        openai.AsyncOpenAI(base_url=f"{emulator.url}/v1", api_key="none", max_retries=0) as client,
    ):
        with pytest.raises(openai.NotFoundError, match="gpt-9"):
            await client.chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "x"}])
        with pytest.raises(openai.BadRequestError, match="at least 1"):
            await client.completions.create(model="llama-3.1-8b", prompt="x", max_tokens=0)


async def test_a_full_queue_refuses_with_503_and_takes_none_of_several_sequences():
    async with served(max_running=1, max_waiting=2, time_scale=1.0) as (emulator, client):
        body = {"prompt": "wait", "max_tokens": 1000, "ignore_eos": True, "stream": True}
        async with client.post("/v1/completions", json=body) as first:
            assert (await first.content.readline()).startswith(b"data: ")  # it runs, so the queue is empty
            async with client.post("/v1/completions", json={**body, "n": 3}) as response:
                error = (await response.json())["error"]
            assert response.status == 503 and "limit is 2" in error["message"]
            assert emulator.worker.stats.waiting == 0
            async with client.post("/v1/completions", json={**body, "n": 2}) as queued:
                assert queued.status == 200
                assert emulator.worker.stats.waiting == 2

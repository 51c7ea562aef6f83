"""Generation through real HTTP, as the OpenAI client sees it."""

import asyncio
import json
from typing import Any

import aiohttp
import openai
import pytest
from emulator_kit import chat, post, served, until

from amf.emulator import Emulator

LONG = "some context that is shared " * 30
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "look_up",
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
    },
}


def openai_async(emulator: Emulator) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{emulator.url}/v1", api_key="none", max_retries=0)


async def events(response: aiohttp.ClientResponse) -> list[Any]:
    """The stream's events; the last one must be the end mark."""
    lines = (await response.text()).split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


async def test_the_openai_client_streams_what_it_gets_whole():
    async with served() as (emulator, _), openai_async(emulator) as client:
        ask: Any = {"model": "llama-3.1-8b", "messages": [{"role": "user", "content": LONG}], "max_tokens": 60}
        whole = await client.chat.completions.create(**ask)
        stream = await client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert len(text) == 4 * 60
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert whole.usage and chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 60
    assert chunks[-1].usage.prompt_tokens_details and chunks[-1].usage.prompt_tokens_details.cached_tokens


async def test_the_synchronous_client_works_too():
    def ask(url: str) -> Any:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            return client.completions.create(model="llama-3.1-8b", prompt="once upon a time", max_tokens=5)

    async with served() as (emulator, _):
        answer = await asyncio.to_thread(ask, emulator.url)
    assert answer.choices[0].finish_reason == "length"
    assert len(answer.choices[0].text) == 20


async def test_a_tool_call_streams_as_deltas_and_ends_the_loop_when_its_result_comes_back():
    async with served() as (emulator, _), openai_async(emulator) as client:
        messages: Any = [{"role": "user", "content": "use look_up to find it"}]
        ask: Any = {"model": "llama-3.1-8b", "messages": messages, "tools": [TOOL]}
        whole = await client.chat.completions.create(**ask)
        calls = whole.choices[0].message.tool_calls
        assert calls and calls[0].type == "function"
        chunks = [chunk async for chunk in await client.chat.completions.create(**ask, stream=True)]
        deltas = [chunk.choices[0].delta.tool_calls for chunk in chunks]
        parts = [call for delta in deltas for call in delta or ()]
        streamed = "".join(part.function.arguments or "" for part in parts if part.function)
        messages += [whole.choices[0].message, {"role": "tool", "tool_call_id": calls[0].id, "content": "found"}]
        answer = await client.chat.completions.create(**ask)
    assert parts[0].function and parts[0].function.name == "look_up" and parts[0].id
    assert streamed == calls[0].function.arguments and set(json.loads(streamed)) == {"word"}
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].finish_reason == "stop" and answer.choices[0].message.content


async def test_json_schema_mode():
    schema = {"type": "object", "properties": {"steps": {"type": "array", "items": {"type": "string"}}}}
    form = {"type": "json_schema", "json_schema": {"name": "plan", "schema": schema}}
    async with served() as (_, client):
        answer = await post(client, "/v1/chat/completions", chat("plan it", response_format=form))
    steps = json.loads(answer["choices"][0]["message"]["content"])["steps"]
    assert steps and all(isinstance(step, str) for step in steps)


@pytest.mark.parametrize("block_tokens", [16, 32])
async def test_a_repeated_prompt_is_cached_but_for_its_last_block(block_tokens: int):
    async with served(block_tokens=block_tokens) as (_, client):
        for words in (64, 65, 500):
            body = {"prompt": f"{words:03} " + "word" * (words - 1), "max_tokens": 3}
            first = (await post(client, "/v1/completions", body))["usage"]
            second = (await post(client, "/v1/completions", body))["usage"]
            assert first["prompt_tokens"] == words
            assert first["prompt_tokens_details"]["cached_tokens"] == 0
            assert second["prompt_tokens_details"]["cached_tokens"] == (words - 1) // block_tokens * block_tokens


async def test_the_next_turn_finds_the_answer_warm():
    async with served() as (_, client):
        first = await post(client, "/v1/chat/completions", chat(LONG, max_tokens=100, ignore_eos=True))
        usage = first["usage"]
        turn = [*chat(LONG)["messages"], first["choices"][0]["message"], {"role": "user", "content": "go on"}]
        second = await post(client, "/v1/chat/completions", {"messages": turn, "max_tokens": 2})
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    # The last token generated was never fed back, so its block is not full.
    assert cached == (usage["total_tokens"] - 1) // 16 * 16 > usage["prompt_tokens"]


async def test_a_salt_isolates_the_cache():
    async with served() as (_, client):
        found = []
        for salt in (None, "tenant", "tenant", None):
            answer = await post(client, "/v1/chat/completions", chat(LONG, max_tokens=1, cache_salt=salt))
            found.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 0)
    assert found == [False, False, True, True]


async def test_token_ids_and_text_are_the_same_prompt():
    async with served() as (_, client):
        tokens = (await post(client, "/tokenize", {"prompt": LONG}))["tokens"]
        text = await post(client, "/v1/completions", {"prompt": LONG, "max_tokens": 8})
        for prompt in (tokens, [tokens], [LONG]):
            again = await post(client, "/v1/completions", {"prompt": prompt, "max_tokens": 8})
            assert again["choices"] == text["choices"]
            assert again["usage"]["prompt_tokens"] == len(tokens)
            assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == (len(tokens) - 1) // 16 * 16


async def test_tokenize_counts_what_usage_counts():
    async with served() as (_, client):
        counted = await post(client, "/tokenize", {"messages": chat("hé — ok")["messages"]})
        answer = await post(client, "/v1/chat/completions", chat("hé — ok", max_tokens=1))
        text = await post(client, "/detokenize", {"tokens": counted["tokens"]})
    assert counted["count"] == len(counted["tokens"]) == answer["usage"]["prompt_tokens"]
    assert text["prompt"] == "hé — ok"


@pytest.mark.parametrize("stream", [False, True])
async def test_n_sequences(stream: bool):
    async with served() as (emulator, client):
        options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        body = {"prompt": LONG, "max_tokens": 20, "n": 3, **options}
        if stream:
            async with client.post("/v1/completions", json=body) as response:
                chunks = await events(response)
            texts = ["", "", ""]
            for chunk in chunks[:-1]:
                texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
            usage = chunks[-1]["usage"]
        else:
            answer = await post(client, "/v1/completions", body)
            texts, usage = [choice["text"] for choice in answer["choices"]], answer["usage"]
        assert emulator.worker.stats.finished == 3
    assert len(set(texts)) == 3 and {len(text) for text in texts} == {80}
    assert usage["completion_tokens"] == 60
    # The siblings share the first one's prefill. A stream tells of the first, a whole answer of the last.
    assert (usage["prompt_tokens_details"]["cached_tokens"] == 0) == stream


@pytest.mark.parametrize("stream", [False, True])
async def test_several_prompts_are_answered_one_after_another(stream: bool):
    prompts = [LONG, "another one", LONG + "and more"]
    async with served() as (_, client):
        alone = [
            await post(client, "/v1/completions", {"prompt": prompt, "max_tokens": 9, "n": 2}) for prompt in prompts
        ]
        body = {"prompt": prompts, "max_tokens": 9, "n": 2, "stream": stream}
        if stream:
            async with client.post("/v1/completions", json=body) as response:
                choices = [choice for event in await events(response) for choice in event["choices"]]
            texts = ["".join(c["text"] for c in choices if c["index"] == index) for index in range(6)]
        else:
            together = await post(client, "/v1/completions", body)
            texts = [choice["text"] for choice in together["choices"]]
            assert together["usage"]["prompt_tokens"] == sum(answer["usage"]["prompt_tokens"] for answer in alone)
            assert together["usage"]["completion_tokens"] == 6 * 9
    assert texts == [choice["text"] for answer in alone for choice in answer["choices"]]


async def test_an_answer_is_cut_where_the_context_ends():
    async with served(max_model_tokens=100) as (_, client):
        for limit in ({"max_tokens": 90}, {}):  # none: 16 for plain completions
            body = {"prompt": "word" * 95, "ignore_eos": True, **limit}
            answer = await post(client, "/v1/completions", body)
            assert answer["usage"]["completion_tokens"] == 5
            assert answer["choices"][0]["finish_reason"] == "length"


async def test_a_role_of_ones_own_is_a_prompt_of_its_own():
    async with served() as (_, client):
        asked = [{"messages": [{"role": role, "content": "hello"}]} for role in ("boss", "user")]
        boss, user = [(await post(client, "/tokenize", body))["tokens"] for body in asked]
    assert boss != user and boss[-3:] == user[-3:]


async def test_streams_can_be_made_to_tell_their_usage_all_along():
    async with served(force_usage=True) as (_, client):
        async with client.post("/v1/completions", json={"prompt": LONG, "max_tokens": 50, "stream": True}) as response:
            told = [event["usage"] for event in await events(response)]
        whole = await post(client, "/v1/completions", {"prompt": LONG, "max_tokens": 50})
    assert [usage["completion_tokens"] for usage in told] == sorted(usage["completion_tokens"] for usage in told)
    assert told[-1]["total_tokens"] == whole["usage"]["total_tokens"]
    assert "prompt_tokens_details" in told[-1] and "prompt_tokens_details" not in told[0]


async def test_stop_and_length_headers():
    async with served() as (_, client):
        body = chat("tell me", max_tokens=1000)
        exact = await post(client, "/v1/chat/completions", body, **{"x-emulate-output-tokens": "33"})
        assert exact["usage"]["completion_tokens"] == 33
        assert exact["choices"][0]["finish_reason"] == "stop"
        text = exact["choices"][0]["message"]["content"]
        stopped = await post(
            client, "/v1/chat/completions", body | {"stop": text[50:56]}, **{"x-emulate-output-tokens": "33"}
        )
        assert stopped["choices"][0]["message"]["content"] == text[: text.index(text[50:56])]
        named = await post(client, "/v1/chat/completions", body, **{"X-Request-Id": "abc"})
        assert named["id"] == "chatcmpl-abc"


async def test_tokens_due_together_travel_together():
    async with served(time_scale=100_000.0) as (_, client):
        body = chat("tell me", max_tokens=2000, ignore_eos=True, stream=True)
        async with client.post("/v1/chat/completions", json=body) as response:
            chunks = await events(response)
    assert len(chunks) < 20
    assert sum(len(chunk["choices"][0]["delta"].get("content", "")) for chunk in chunks) == 8000


async def test_without_priority_scheduling_a_priority_counts_for_nothing_and_what_is_none_never_does():
    """As vLLM 0.32 was seen to do."""
    async with served() as (emulator, client):
        for body, headers in (
            ({"priority": 5}, {}),
            ({}, {"X-Vllm-Priority": "-7"}),
            ({}, {"X-Vllm-Priority": "soon"}),
        ):
            await post(client, "/v1/completions", {"prompt": "x", "max_tokens": 1, **body}, **headers)
        assert emulator.worker.stats.finished == 3


async def test_priority_decides_who_runs_next_on_a_full_worker():
    asked: list[tuple[str, int, dict[str, str]]] = [
        ("late", 9, {}),
        ("soon", -3, {}),
        ("header", 99, {"X-Vllm-Priority": "5"}),
    ]
    order: list[str] = []

    async def ask(client: aiohttp.ClientSession, name: str, priority: int, headers: dict[str, str]) -> None:
        await post(client, "/v1/completions", {"prompt": name, "max_tokens": 90, "priority": priority}, **headers)
        order.append(name)

    async with served(scheduling="priority", max_running=1, time_scale=50.0) as (emulator, client):
        holder = {"prompt": "hold", "max_tokens": 100_000, "ignore_eos": True, "stream": True}
        async with asyncio.TaskGroup() as group, client.post("/v1/completions", json=holder) as response:
            await response.content.readline()
            for waiting, request in enumerate(asked, 1):
                group.create_task(ask(client, *request))
                await until(lambda waiting=waiting: emulator.worker.stats.waiting == waiting)  # type: ignore[misc]
    assert order == ["soon", "header", "late"]

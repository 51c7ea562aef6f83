"""The `openai` package as people use it, sync and async, through the gateway: answers, structure, identity."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from e2e_kit import MODEL, House, house
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from amf.emulator import EmulatorConfig

ENCODER = "bge-m3"
SCALE = 200.0
HELLO = [{"role": "user", "content": "Say something about prefix caches."}]


def tool(name: str, **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": f"the {name}", "parameters": schema}}


TOOLS = [tool("get_weather", city={"type": "string"}), tool("add", a={"type": "integer"}, b={"type": "integer"})]


@asynccontextmanager
async def client_of(**more: Any) -> AsyncIterator[tuple[AsyncOpenAI, House]]:
    """Two workers of a chat model and one of an encoder."""
    chat, encoder = EmulatorConfig(model=MODEL, time_scale=SCALE), EmulatorConfig(model=ENCODER, time_scale=SCALE)
    async with house(chat, chat, encoder, **more) as built, AsyncOpenAI(base_url=built.url, api_key="none") as client:
        yield client, built


async def chat(client: AsyncOpenAI, **fields: Any) -> Any:
    return await client.chat.completions.create(**{"model": MODEL, "messages": HELLO, "max_tokens": 40, **fields})


async def test_the_sync_client() -> None:
    def talk(url: str) -> tuple[Any, str, list[str]]:
        with OpenAI(base_url=url, api_key="none") as client:
            whole = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=40)
            with client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=40, stream=True) as stream:
                text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
            return whole, text, [model.id for model in client.models.list()]

    async with client_of() as (_, built):
        whole, text, models = await asyncio.to_thread(talk, built.url)
    assert whole.choices[0].message.content == text != ""
    assert whole.usage.completion_tokens <= 40 and whole.model == MODEL
    assert models == [ENCODER, MODEL]


async def test_a_stream_ends_with_its_usage() -> None:
    async with client_of() as (client, built):
        whole = await chat(client)
        stream = await chat(client, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
        *body, last = chunks
        assert "".join(c.choices[0].delta.content or "" for c in body) == whole.choices[0].message.content
        assert body[-1].choices[0].finish_reason == whole.choices[0].finish_reason
        assert last.choices == [] and last.usage is not None
        assert last.usage.prompt_tokens == whole.usage.prompt_tokens
        assert last.usage.completion_tokens == whole.usage.completion_tokens
        assert built.requests() == {200: 2}


async def test_many_calls_at_once() -> None:
    async with client_of() as (client, built):
        answers = await asyncio.gather(
            *(chat(client, messages=[{"role": "user", "content": f"agent {i}"}]) for i in range(20))
        )
        assert len({answer.id for answer in answers}) == 20
        assert all(answer.choices[0].message.content for answer in answers)
        assert {each.worker for each in built.fabric.dispatches()} == {"w0", "w1"}


@pytest.mark.parametrize(
    ("choice", "content", "called"),
    [
        ("required", "hello", "get_weather"),
        ({"type": "function", "function": {"name": "add"}}, "hello", "add"),
        ("auto", "please use add on 1 and 2", "add"),
        ("auto", "hello", None),
        ("none", "please use add", None),
    ],
)
async def test_tools(choice: Any, content: str, called: str | None) -> None:
    asked = {"messages": [{"role": "user", "content": content}], "tools": TOOLS, "tool_choice": choice}
    async with client_of() as (client, _):
        answer = (await chat(client, **asked)).choices[0]
        stream = await chat(client, **asked, stream=True)
        deltas = [chunk.choices[0] async for chunk in stream]
        parts = [call for choice in deltas for call in choice.delta.tool_calls or ()]
    if called is None:
        assert not answer.message.tool_calls and answer.message.content and not parts
        return
    (made,) = answer.message.tool_calls
    assert answer.finish_reason == deltas[-1].finish_reason == "tool_calls"
    assert made.function.name == called and made.id
    wanted = {"add": {"a": int, "b": int}, "get_weather": {"city": str}}[called]
    arguments = json.loads(made.function.arguments)
    assert {name: type(value) for name, value in arguments.items()} == wanted
    assert parts[0].function.name == called and parts[0].id
    assert json.loads("".join(part.function.arguments or "" for part in parts)) == arguments


async def test_a_tool_loop_comes_to_its_end() -> None:
    """Ask, call, answer the call, finish: the history with the tool's result belongs to the same run."""
    messages: list[Any] = [{"role": "user", "content": "use add on 1 and 2"}]
    async with client_of() as (client, _):
        first = await client.chat.completions.with_raw_response.create(model=MODEL, messages=messages, tools=TOOLS)
        message = first.parse().choices[0].message
        call = message.tool_calls[0]
        messages += [message, {"role": "tool", "tool_call_id": call.id, "content": "3"}]
        second = await client.chat.completions.with_raw_response.create(model=MODEL, messages=messages, tools=TOOLS)
    assert second.parse().choices[0].finish_reason in ("stop", "length")
    assert second.headers["x-amf-run-id"] == first.headers["x-amf-run-id"]
    assert second.parse().usage.prompt_tokens_details.cached_tokens > 0


async def test_json_mode_and_structured_output() -> None:
    class Verdict(BaseModel):
        ok: bool
        reasons: list[str]

    async with client_of() as (client, _):
        loose = await chat(client, response_format={"type": "json_object"}, max_tokens=400)
        assert isinstance(json.loads(loose.choices[0].message.content), dict)
        strict = await client.chat.completions.parse(model=MODEL, messages=HELLO, response_format=Verdict)
        assert isinstance(strict.choices[0].message.parsed, Verdict)


async def test_completions_and_embeddings() -> None:
    async with client_of() as (client, built):
        text = await client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=12)
        assert text.choices[0].text and text.usage.completion_tokens <= 12
        listed = await client.embeddings.create(model=ENCODER, input=["one", "two"])
        floats = await client.embeddings.create(model=ENCODER, input="one", encoding_format="float")
        assert [item.index for item in listed.data] == [0, 1]
        assert listed.data[0].embedding == pytest.approx(floats.data[0].embedding, abs=1e-6)
        assert listed.data[0].embedding != listed.data[1].embedding
        workers = {each.worker for each in built.fabric.dispatches()[-2:]}
        assert workers == {"w2"}


async def test_the_headers_say_what_became_of_the_call() -> None:
    async with client_of() as (client, built):
        call = client.chat.completions.with_raw_response.create
        hop = {"pipeline": "demo", "run_id": "r1", "hop": "plan", "deadline_ms": 60_000}
        first = await call(model=MODEL, messages=HELLO, max_tokens=20, extra_body={"amf": hop})
        second = await call(
            model=MODEL,
            messages=HELLO,
            max_tokens=20,
            extra_headers={"x-amf-run-id": "r1", "x-amf-hop": "act", "x-amf-parents": "plan", "x-amf-final": "true"},
        )
        for answer, hop_id in ((first, "plan"), (second, "act")):
            assert answer.parse().choices[0].message.content
            headers = answer.headers
            assert headers["x-amf-run-id"] == "r1" and headers["x-amf-hop-id"] == hop_id
            assert headers["x-amf-identity-source"] == "explicit"
            assert headers["x-amf-worker"] in ("w0", "w1")
            assert float(headers["x-amf-queue-ms"]) >= 0 and 0 < float(headers["x-amf-overhead-ms"]) < 1000
            assert 0 < float(headers["x-amf-slack-ms"]) <= 60_000 and 0 < float(headers["x-amf-budget-ms"]) <= 60_000
            assert headers["x-request-id"] in built.fabric.calls_of("r1")
        assert int(second.headers["x-amf-warm-tokens"]) > 0


async def test_the_run_is_reported_and_explained() -> None:
    async with client_of() as (client, built):
        hop = {"pipeline": "demo", "run_id": "r2", "hop": "plan", "final": True}
        stream = await client.chat.completions.with_raw_response.create(
            model=MODEL, messages=HELLO, max_tokens=20, stream=True, extra_body={"amf": hop}
        )
        assert [chunk async for chunk in stream.parse()]
        report = built.fabric.run_report("r2")
        assert report["status"] == "final" and report["graph"] == "demo" and report["hops"] == {"plan": 1}
        control = AsyncOpenAI(base_url=f"{built.gateway.url}/amf/v1", api_key="none")
        async with control:
            served = await control.get("/runs/r2", cast_to=object)
            why = await control.get(f"/explain/{stream.headers['x-request-id']}", cast_to=object)
        assert served["hops"] == {"plan": 1}
        assert [each["type"] for each in why["decisions"]] == ["Admit", "Dispatch"]


async def test_error_classes_and_bodies() -> None:
    async with client_of(server={"max_body_bytes": 20_000}) as (client, built):
        before = len(built.fabric.dispatches())

        async def fails(**fields: Any) -> openai.APIStatusError:
            with pytest.raises(openai.APIStatusError) as caught:
                await chat(client, **fields)
            body: Any = caught.value.body
            assert set(body) >= {"message", "type", "param", "code"} and body["message"]
            return caught.value

        unknown = await fails(model="gpt-99")
        assert isinstance(unknown, openai.NotFoundError) and unknown.code == "model_not_found"
        assert MODEL in unknown.message and unknown.param == "model"
        empty = await fails(messages=[])
        assert isinstance(empty, openai.BadRequestError) and (empty.code, empty.param) == ("missing_field", "messages")
        wrong = await fails(max_tokens="many")
        assert isinstance(wrong, openai.BadRequestError) and wrong.code == "invalid_field"
        clash = await fails(extra_body={"amf": {"run_id": "a"}}, extra_headers={"x-amf-run-id": "b"})
        assert isinstance(clash, openai.BadRequestError) and clash.code == "contradictory_identity"
        orphan = await fails(extra_headers={"x-amf-run-id": "a", "x-amf-parents": "nobody"})
        assert isinstance(orphan, openai.BadRequestError) and orphan.code == "unknown_parents"
        large = await fails(messages=[{"role": "user", "content": "x" * 30_000}])
        assert (large.status_code, large.code) == (413, "body_too_large")
        assert len(built.fabric.dispatches()) == before and built.fabric.totals()["opened"] == 0


async def test_the_workers_own_refusal_reaches_the_client_as_it_is() -> None:
    async with client_of() as (client, built):
        with pytest.raises(openai.BadRequestError, match="nothing_such"):
            await chat(client, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "nothing_such"}})
        assert built.requests() == {400: 1}
        assert built.fabric.totals()["failed"] == 1 and built.fabric.totals()["live_calls"] == 0


async def test_keys() -> None:
    async with client_of(server={"api_keys": ("sesame",)}) as (client, built):
        with pytest.raises(openai.AuthenticationError) as caught:
            await chat(client)
        assert caught.value.code == "invalid_api_key"
        assert (await chat(client.with_options(api_key="sesame"))).choices
        assert built.requests() == {401: 1, 200: 1}

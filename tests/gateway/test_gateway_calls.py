"""Calls through a live gateway: what the client gets, what the engine gets."""

import asyncio
import json
from contextlib import AsyncExitStack

import openai
import pytest
from gateway_kit import FakeEngine, fake_engine, gateway_of, until

from amf.config import ServerConfig
from amf.gateway.service import Gateway


async def test_a_stream_passes_byte_for_byte() -> None:
    async with fake_engine() as engine, gateway_of(engine) as (_, client):
        answer = await client.chat("hi", stream=True)
    assert answer.status == 200
    assert answer.body == b"".join(engine.sse())
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["x-engine"] == "fake"


async def test_the_first_chunk_arrives_before_the_last_is_made() -> None:
    async with fake_engine(FakeEngine(fault="pause")) as engine, gateway_of(engine) as (_, client):
        body = {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "x"}]}
        async with client.session.post(client.url + "/v1/chat/completions", json=body) as response:
            first = await response.content.readany()
            assert first.startswith(engine.sse()[0])
            engine.release.set()
            assert first + await response.read() == b"".join(engine.sse())


async def test_an_answer_and_its_headers() -> None:
    async with fake_engine() as engine, gateway_of(engine, policy="fabric") as (gateway, client):
        answer = await client.chat(
            "hi", headers={"x-amf-run-id": "r1", "x-amf-hop": "plan", "x-amf-deadline-ms": "60000"}
        )
        assert answer.body == engine.answer()
        headers = answer.headers
        assert headers["x-amf-run-id"] == "r1"
        assert headers["x-amf-hop-id"] == "plan"
        assert headers["x-amf-identity-source"] == "explicit"
        assert headers["x-amf-worker"] == "w0"
        assert int(headers["x-amf-warm-tokens"]) == 0
        assert 0 <= float(headers["x-amf-queue-ms"]) < 1000
        assert 0 < float(headers["x-amf-overhead-ms"]) < 1000
        assert 0 < float(headers["x-amf-slack-ms"]) <= 60_000
        assert engine.headers[0]["x-request-id"] == headers["x-request-id"]
        again = await client.chat("hi", headers={"x-amf-run-id": "r1"})
        assert again.headers["x-amf-hop-id"] == "1"
        report = gateway.fabric.run_report("r1")
        assert (report["calls"], report["finished"]) == (2, 2)


async def test_what_the_client_sent_reaches_the_engine_untouched() -> None:
    raw = b'{"model": "tiny",  "messages":[{"role":"user","content":"\\u00fc \xc3\xbc"}], "seed":1e3, "unknown": {"deep":[1]}}'
    async with fake_engine() as engine, gateway_of(engine) as (_, client):
        headers = {"Content-Type": "application/json", "x-custom": "kept", "x-amf-hop": "a", "x-gateway-x": "no"}
        answer = await client.request("POST", "/v1/chat/completions", data=raw, headers=headers)
        assert answer.status == 200
        marked = raw[:-1] + b', "amf": {"run_id": "r"}, "priority": -9}'
        assert (await client.request("POST", "/v1/chat/completions", data=marked)).headers["x-amf-run-id"] == "r"
    assert engine.bodies[0] == raw
    sent = engine.headers[0]
    assert sent["x-custom"] == "kept" and "x-amf-hop" not in sent and "x-gateway-x" not in sent
    assert b"amf" not in engine.bodies[1] and b"priority" not in engine.bodies[1]
    assert b'"\\u00fc \xc3\xbc"' in engine.bodies[1] and b"1e3" in engine.bodies[1]


async def test_token_prompts_embeddings_and_rerank() -> None:
    async with fake_engine() as engine, gateway_of(engine) as (gateway, client):
        for path, body in (
            ("/v1/completions", {"prompt": list(range(100))}),
            ("/v1/completions", {"prompt": [list(range(100))]}),
            ("/v1/completions", {"prompt": "some text"}),
            ("/v1/completions", {"prompt": ["one", "two"]}),
            ("/v1/embeddings", {"input": "text"}),
            ("/v1/embeddings", {"input": ["a", "b"]}),
            ("/v1/rerank", {"query": "q", "documents": ["a", {"text": "b"}]}),
        ):
            answer = await client.request("POST", path, json={"model": "tiny", **body})
            assert answer.status == 200, (path, answer.body)
        assert gateway.fabric.totals()["finished"] == 7
    assert len(engine.bodies) == 7


async def test_runs_are_recognised_without_a_word_from_the_client() -> None:
    async with fake_engine() as engine, gateway_of(engine) as (_, client):
        first = await client.chat("q1")
        other = await client.chat("q1")
        second = await client.chat("q1", "a1", "q2")
        assert first.headers["x-amf-identity-source"] == "derived"
        assert first.headers["x-amf-run-id"] != other.headers["x-amf-run-id"]
        assert second.headers["x-amf-run-id"] in (first.headers["x-amf-run-id"], other.headers["x-amf-run-id"])
        assert second.headers["x-amf-hop-id"] == "1"


async def test_the_openai_client_works_in_all_its_ways() -> None:
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(fake_engine())
        gateway, _ = await stack.enter_async_context(gateway_of(engine))
        client = openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key="none", max_retries=0)
        stack.push_async_callback(client.close)
        messages = [{"role": "user", "content": "hi"}]
        answer = await client.chat.completions.create(model="tiny", messages=messages, extra_body={"amf": {"hop": "h"}})
        assert answer.choices[0].message.content == "Hello  wörld"
        stream = await client.chat.completions.create(model="tiny", messages=messages, stream=True)
        text = "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])
        assert text == "Hello wörld  "
        assert [model.id async for model in client.models.list()] == ["tiny"]
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(model="nope", messages=messages)
        assert caught.value.code == "model_not_found"


async def test_operations_routes() -> None:
    async with fake_engine() as engine, gateway_of(engine) as (_, client):
        assert (await client.request("GET", "/health")).status == 200
        assert (await client.request("GET", "/ready")).json == {"ready": True, "workers_up": 1}
        await client.chat("hi")
        page = (await client.request("GET", "/metrics")).body.decode()
        assert 'amf_requests_total{route="/v1/chat/completions",status="200"} 1.0' in page
        assert 'amf_dispatched_calls_total{worker="w0"} 1.0' in page
        assert 'amf_prompt_tokens_total{pool="tiny"} 40.0' in page
        assert 'amf_recomputed_tokens_total{pool="tiny"} 24.0' in page
        unknown = await client.request("GET", "/v1/nothing")
        assert (unknown.status, unknown.code) == (404, "unknown_path")
        wrong = await client.request("GET", "/v1/chat/completions")
        assert (wrong.status, wrong.code) == (405, "method_not_allowed")


async def test_keys() -> None:
    server = ServerConfig(port=0, api_keys=("alpha",), trusted_keys=("root",), shutdown_grace_s=0.1)
    async with fake_engine() as engine, gateway_of(engine, server=server) as (_, client):
        assert (await client.request("GET", "/health")).status == 200
        for path in ("/ready", "/metrics", "/v1/models", "/amf/v1/workers", "/nothing"):
            assert (await client.request("GET", path)).status == 401
        assert (await client.chat("hi", headers={"Authorization": "Bearer wrong"})).code == "invalid_api_key"
        alpha, root = {"Authorization": "Bearer alpha"}, {"x-api-key": "root"}
        mine = await client.chat("hi", headers={**alpha, "x-amf-run-id": "r"}, priority=-3)
        assert (mine.status, mine.headers["x-amf-run-id"]) == (200, "r")
        assert "authorization" not in engine.headers[0]
        assert b"priority" not in engine.bodies[0]
        await client.chat("hi", headers=root, priority=-3)
        assert json.loads(engine.bodies[1])["priority"] == -3
        assert (await client.request("GET", "/amf/v1/runs/r", headers=alpha)).json["run_id"] == "r"
        assert (await client.request("GET", "/amf/v1/runs/r", headers=root)).status == 404
        assert [run["run_id"] for run in (await client.request("GET", "/amf/v1/runs", headers=alpha)).json["runs"]] == [
            "r"
        ]
        assert (await client.request("DELETE", "/amf/v1/workers/w0", headers=alpha)).status == 403
        assert (await client.request("DELETE", "/amf/v1/workers/w0", headers=root)).status == 200


async def test_graphs_runs_and_explanations() -> None:
    graph = {"name": "g", "hops": [{"name": "plan"}, {"name": "code", "after": "plan"}]}
    async with (
        fake_engine(FakeEngine(fault="hold")) as engine,
        gateway_of(engine, policy="fabric") as (_, client),
    ):
        assert (await client.request("POST", "/amf/v1/graphs", json=graph)).status == 201
        assert (await client.request("GET", "/amf/v1/graphs")).json["graphs"][0]["name"] == "g"
        cyclic = {"name": "c", "hops": [{"name": "a", "after": "b"}, {"name": "b", "after": "a"}]}
        assert (await client.request("POST", "/amf/v1/graphs", json=cyclic)).code == "invalid_graph"
        run = {"x-amf-run-id": "r", "x-amf-pipeline": "g", "x-amf-hop": "code", "x-amf-parents": "plan"}
        call = asyncio.create_task(client.chat("hi", headers=run))
        await until(lambda: engine.running == 1)
        assert (await client.request("POST", "/amf/v1/runs/r/close")).json == {"open_calls": 1}
        assert (await client.request("GET", "/amf/v1/runs/r")).json["status"] == "live"
        engine.release.set()
        answer = await call
        assert answer.status == 200
        assert (await client.request("GET", "/amf/v1/runs/r")).json["status"] != "live"
        request_id = answer.headers["x-request-id"]
        explained = (await client.request("GET", f"/amf/v1/explain/{request_id}")).json
        assert explained["decisions"][-1]["worker"] == "w0"
        table = (await client.request("GET", f"/amf/v1/explain/{request_id}?format=text")).body.decode()
        assert request_id in table and "w0" in table
        assert (await client.request("GET", "/amf/v1/explain/none")).code == "request_not_found"
        assert (await client.request("GET", "/amf/v1/runs?limit=0")).status == 400


async def test_cancelling_a_run_ends_its_calls_at_once() -> None:
    async with fake_engine(FakeEngine(fault="hold")) as engine, gateway_of(engine) as (gateway, client):
        call = asyncio.create_task(client.chat("hi", headers={"x-amf-run-id": "r"}))
        await until(lambda: engine.running == 1)
        assert (await client.request("POST", "/amf/v1/runs/r/cancel")).json == {"cancelled_calls": 1}
        answer = await call
        assert (answer.status, answer.code) == (410, "run_cancelled")
        assert answer.headers["x-should-retry"] == "false"
        await until(lambda: engine.cancelled == 1)
        assert (await client.request("POST", "/amf/v1/runs/unknown/cancel")).code == "run_not_found"
        _idle(gateway)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_run_past_its_deadline_is_ended_where_the_policy_says_so(stream: bool) -> None:
    fault = "pause" if stream else "hold"
    async with (
        fake_engine(FakeEngine(fault=fault)) as engine,
        gateway_of(engine, policy="edf-cancel") as (gateway, client),
    ):
        headers = {"x-amf-run-id": "r", "x-amf-deadline-ms": "400"}
        answer = await client.chat("hi", headers=headers, stream=stream)
        if stream:  # the head was sent before the deadline passed
            last = json.loads(answer.body.split(b"data: ")[-1])
            assert (answer.status, last["error"]["code"]) == (200, "deadline_exceeded")
        else:
            assert (answer.status, answer.code) == (504, "deadline_exceeded")
            assert answer.headers["x-should-retry"] == "false"
        await until(lambda: engine.cancelled == 1)
        assert (await client.request("GET", "/amf/v1/runs/r")).json["status"] == "expired"
        again = await client.chat("hi", headers={"x-amf-run-id": "r"})
        assert (again.status, again.code) == (504, "deadline_exceeded")
        _idle(gateway)


def _idle(gateway: Gateway) -> None:
    assert gateway.driver.open_calls() == 0
    assert gateway.fabric.totals()["live_calls"] == 0
    gateway.fabric.check_invariants()


async def test_deadlines_are_scaled_with_the_fleet() -> None:
    server = ServerConfig(port=0, time_scale=10.0, shutdown_grace_s=0.1)
    async with fake_engine() as engine, gateway_of(engine, server=server) as (gateway, client):
        await client.chat("hi", headers={"x-amf-run-id": "r", "x-amf-deadline-ms": "2000"})
        report = gateway.fabric.run_report("r")
        assert report["deadline_s"] - report["opened_s"] == pytest.approx(20.0, abs=0.5)

"""Each bad request gets its own clear error, touches no worker and changes no state."""

import json
from typing import Any

import pytest
from gateway_kit import chat_messages, fake_engine, gateway_of

from amf.config import ServerConfig

OK = {"model": "tiny", "messages": chat_messages("hi")}
CHAT = "/v1/chat/completions"


def body(**fields: Any) -> bytes:
    return json.dumps({**OK, **fields}).encode()


CASES = {
    "no body": (CHAT, b"", {}, 400, "invalid_json"),
    "not json": (CHAT, b"model=tiny", {}, 400, "invalid_json"),
    "cut json": (CHAT, body()[:-5], {}, 400, "invalid_json"),
    "two documents": (CHAT, body() + b"{}", {}, 400, "invalid_json"),
    "too deep": (CHAT, b'{"x":' + b"[" * 1500 + b"]" * 1500 + b"}", {}, 400, "invalid_json"),
    "an array": (CHAT, b"[1]", {}, 400, "invalid_field"),
    "broken utf-8": (CHAT, body().replace(b"hi", b"\xff\xfe"), {}, 400, "invalid_utf8"),
    "messages a text": (CHAT, body(messages="hi"), {}, 400, "invalid_field"),
    "content a number": (CHAT, body(messages=[{"role": "user", "content": 5}]), {}, 400, "invalid_field"),
    "no messages": (CHAT, body(messages=[]), {}, 400, "missing_field"),
    "no prompt": ("/v1/completions", b'{"model":"tiny"}', {}, 400, "missing_field"),
    "no token": ("/v1/completions", b'{"model":"tiny","prompt":[1,-2]}', {}, 400, "invalid_field"),
    "no token among several prompts": (
        "/v1/completions",
        b'{"model":"tiny","prompt":[[1],[1,-2]]}',
        {},
        400,
        "invalid_field",
    ),
    "no documents": ("/v1/rerank", b'{"model":"tiny","query":"q"}', {}, 400, "missing_field"),
    "max_tokens negative": (CHAT, body(max_tokens=-1), {}, 400, "invalid_field"),
    "no model": (CHAT, body(model=None), {}, 400, "model_missing"),
    "unknown model": (CHAT, body(model="gpt-9"), {}, 404, "model_not_found"),
    "too large": (CHAT, body(x="y" * 5000), {}, 413, "body_too_large"),
    "unknown amf field": (CHAT, body(amf={"run": "r"}), {}, 400, "invalid_field"),
    "amf no object": (CHAT, body(amf="r"), {}, 400, "invalid_field"),
    "two runs": (CHAT, body(amf={"run_id": "a"}), {"x-amf-run-id": "b"}, 400, "contradictory_identity"),
    "parents without run": (CHAT, body(), {"x-amf-parents": "a"}, 400, "parents_without_run"),
    "unknown parents": (CHAT, body(), {"x-amf-run-id": "r", "x-amf-parents": "a"}, 400, "unknown_parents"),
    "own parent": (CHAT, body(amf={"run_id": "r", "hop": "a", "parents": ["a"]}), {}, 400, "cyclic_parents"),
    "branch no path": (CHAT, body(), {"x-amf-run-id": "r", "x-amf-branch": "alone"}, 400, "invalid_branch"),
    "branch without run": (CHAT, body(), {"x-amf-branch": "g/a"}, 400, "branch_without_run"),
    "branch kind": (
        CHAT,
        body(amf={"run_id": "r", "branch": {"group": "g", "alternative": "a", "kind": "best"}}),
        {},
        400,
        "invalid_branch",
    ),
    "commit of a group": (CHAT, body(amf={"run_id": "r", "commit": "g"}), {}, 400, "invalid_branch"),
    "deadline zero": (CHAT, body(), {"x-amf-deadline-ms": "0"}, 400, "invalid_deadline"),
    "deadline text": (CHAT, body(), {"x-amf-deadline-ms": "4s"}, 400, "invalid_deadline"),
    "deadline past": (CHAT, body(), {"grpc-timeout": "0m"}, 504, "deadline_exceeded"),
    "deadline over before it began": (CHAT, body(), {"x-amf-deadline-ms": "1e-9"}, 504, "deadline_exceeded"),
    "deadline too long": (CHAT, body(), {"x-amf-deadline-ms": "1e15"}, 400, "invalid_deadline"),
    "timeout text": (CHAT, body(), {"grpc-timeout": "soon"}, 400, "invalid_deadline"),
    "timeout over before it began": (CHAT, body(), {"grpc-timeout": "1n"}, 504, "deadline_exceeded"),
    "ttft text": (CHAT, body(), {"x-slo-ttft-ms": "-1"}, 400, "invalid_deadline"),
    "service tier": (CHAT, body(service_tier="gold"), {}, 400, "invalid_service_tier"),
    "slo class": (CHAT, body(), {"x-amf-slo-class": "now"}, 400, "invalid_slo_class"),
}


@pytest.mark.parametrize("name", CASES)
async def test_bad_requests(name: str) -> None:
    path, raw, headers, status, code = CASES[name]
    server = ServerConfig(port=0, max_body_bytes=4096, shutdown_grace_s=0.1)
    async with fake_engine() as engine, gateway_of(engine, policy="fabric", server=server) as (gateway, client):
        before = (gateway.fabric.totals(), gateway.fabric.run_reports(10))
        answer = await client.request("POST", path, data=raw, headers={"Content-Type": "application/json", **headers})
        assert (answer.status, answer.code) == (status, code), answer.body
        error = answer.json["error"]
        assert set(error) == {"message", "type", "param", "code"} and len(error["message"]) > 20
        assert (gateway.fabric.totals(), gateway.fabric.run_reports(10)) == before
        assert engine.bodies == []
        good = await client.chat("hi", headers={"x-amf-run-id": "r"})
        assert (good.status, good.headers["x-amf-hop-id"]) == (200, "0")


async def test_chunked_bodies_are_bounded_too() -> None:
    server = ServerConfig(port=0, max_body_bytes=4096, shutdown_grace_s=0.1)

    async def pieces():  # type: ignore[no-untyped-def]
        for _ in range(10):
            yield b"x" * 1000

    async with fake_engine() as engine, gateway_of(engine, server=server) as (_, client):
        answer = await client.request("POST", CHAT, data=pieces())
        assert (answer.status, answer.code) == (413, "body_too_large")
        assert engine.bodies == []


async def test_errors_say_where() -> None:
    async with fake_engine() as engine, gateway_of(engine) as (_, client):
        answer = await client.request("POST", CHAT, data=body(messages=[{"role": "user", "content": {"a": 1}}]))
        assert "$.messages[0].content" in answer.json["error"]["message"]
        answer = await client.request("POST", CHAT, data=b'{"model": "\xff"}')
        assert "byte 11" in answer.json["error"]["message"]

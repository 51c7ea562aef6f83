"""A scripted OpenAI-compatible target: each request is answered by the next step of its script, the last one repeats."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from amf.sim.plan import CallPlan, PipelinePlan, PromptPlan
from amf.sim.workload.blocks import SHARED_BLOCKS

Step = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Target:
    url: str = ""
    requests: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)


def answer(*, prompt: int = 100, cached: int = 40, output: int = 3, delay_s: float = 0.0) -> Step:
    """A well-formed stream: a role chunk, `output` content chunks, usage, the end."""

    async def step(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream", "x-amf-worker": "w1"})
        await response.prepare(request)
        await _say(response, {"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        await asyncio.sleep(delay_s)
        for _ in range(output):
            await _say(response, {"choices": [{"delta": {"content": "ok "}}]})
        details = {"cached_tokens": cached}
        usage = {"prompt_tokens": prompt, "completion_tokens": output, "prompt_tokens_details": details}
        await _say(response, {"choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        return response

    return step


def cut() -> Step:
    """A stream that ends in the middle."""

    async def step(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await _say(response, {"choices": [{"delta": {"content": "half"}}]})
        return response

    return step


def broken_stream(code: str) -> Step:
    """A stream that reports an error after its first content."""

    async def step(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await _say(response, {"choices": [{"delta": {"content": "half"}}]})
        await _say(response, {"error": {"code": code, "message": "…"}})
        await response.write(b"data: [DONE]\n\n")
        return response

    return step


def refuse(status: int, code: str, **headers: str) -> Step:
    async def step(_: web.Request) -> web.StreamResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.json_response({"error": {"code": code}}, status=status, headers=named)

    return step


def stall() -> Step:
    async def step(_: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    return step


async def _say(response: web.StreamResponse, chunk: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")


@asynccontextmanager
async def scripted(steps: Sequence[Step]) -> AsyncIterator[Target]:
    target = Target()

    async def handle(request: web.Request) -> web.StreamResponse:
        target.requests.append((request.path, dict(request.headers), json.loads(await request.read())))
        return await steps[min(len(target.requests), len(steps)) - 1](request)

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m"}]})

    app = web.Application(client_max_size=2**26)
    app.router.add_post("/{path:.*}", handle)
    app.router.add_get("/v1/models", models)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    target.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield target
    finally:
        await runner.cleanup()


def chain(name: str, hops: int, *, gap_s: float = 0.0, declared: bool = False, **fields: Any) -> PipelinePlan:
    """A growing session of `hops` calls on model "m"."""
    calls = tuple(
        CallPlan(
            index=index,
            hop=f"h{index}",
            pool="m",
            prompt=PromptPlan(
                namespace=f"g/{name}",
                block_tokens=16,
                runs=((0, 2), (SHARED_BLOCKS, 2 + index)),
                tail_tokens=3,
            ),
            output_tokens=3,
            parents=(index - 1,) if index else (),
            gap_s=gap_s,
        )
        for index in range(hops)
    )
    return PipelinePlan(pipeline_id=name, graph="g", calls=calls, declared=declared, **fields)

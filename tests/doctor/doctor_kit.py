"""For the tests of `amf doctor` and `amf workers`: the commands as a user runs them, emulated engines, and a proxy that
strips and alters what passes."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from click.testing import Result
from typer.testing import CliRunner

from amf.cli import app
from amf.emulator import Emulator, EmulatorConfig, running

Edit = Callable[[str, bytes], bytes]
Instead = Callable[[web.Request], Awaitable[web.Response | None]]


async def amf(*arguments: object) -> Result:
    """`amf ARGUMENTS` in a thread of its own, while servers of the test answer it."""
    return await asyncio.to_thread(CliRunner().invoke, app, [str(argument) for argument in arguments])


async def doctor(*arguments: object, folder: Path) -> tuple[Result, dict[tuple[str, str], dict[str, Any]]]:
    """The result, and the findings by subject and check."""
    report = folder / "findings.json"
    result = await amf("doctor", *arguments, "--json", report)
    assert result.exit_code in (0, 1), result.output
    findings = json.loads(report.read_text())["findings"]
    return result, {(each["subject"], each["check"]): each for each in findings}


def levels(findings: dict[tuple[str, str], dict[str, Any]], subject: str) -> dict[str, str]:
    return {check: each["level"] for (about, check), each in findings.items() if about == subject}


@asynccontextmanager
async def emulated(**changes: Any) -> AsyncIterator[Emulator]:
    async with running(EmulatorConfig(**{"time_scale": 1000.0, "kv_tokens": 65_536, **changes})) as emulator:
        yield emulator


@asynccontextmanager
async def proxied(
    url: str,
    *,
    drops: Iterable[str] = (),
    drops_back: Iterable[str] = (),
    edit: Edit | None = None,
    instead: Instead | None = None,
) -> AsyncIterator[str]:
    """A proxy before `url`. It drops these request and response headers (lower case), edits bodies of answers by path, and
    answers itself what `instead` answers."""
    asked, answered = {"host", *drops}, {"content-length", "transfer-encoding", *drops_back}

    async def forward(request: web.Request) -> web.Response:
        if instead is not None and (own := await instead(request)) is not None:
            return own
        headers = {name: value for name, value in request.headers.items() if name.lower() not in asked}
        where = url + request.path_qs
        async with session.request(request.method, where, headers=headers, data=await request.read()) as response:
            body = await response.read()
            back = {name: value for name, value in response.headers.items() if name.lower() not in answered}
            return web.Response(
                status=response.status, headers=back, body=edit(request.path, body) if edit is not None else body
            )

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", forward)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    async with aiohttp.ClientSession() as session:
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


async def without_key(request: web.Request) -> web.Response | None:
    """For `instead`: only `Bearer sesame` passes."""
    return None if request.headers.get("Authorization") == "Bearer sesame" else web.Response(status=401)


async def refusing_priorities(request: web.Request) -> web.Response | None:
    """For `instead`: what releases before vLLM 0.32 did unless they scheduled by priorities."""
    body = json.loads(await request.read() or b"{}")
    priority = int(request.headers.get("X-Vllm-Priority", body.get("priority") or 0))
    return web.json_response({"error": {"message": "no priorities"}}, status=400) if priority else None


def replacing(path: str, old: bytes, new: bytes) -> Edit:
    """Edits one path's answers; `old` must be there."""

    def edit(asked: str, body: bytes) -> bytes:
        if asked != path:
            return body
        assert old in body, body
        return body.replace(old, new)

    return edit


def fabric_toml(folder: Path, *workers: dict[str, Any], tokenizer: str | None = None) -> Path:
    """Of workers of llama-3.1-8b as the emulator has it by default."""
    lines = []
    for worker in workers:
        lines.append("[[worker]]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in {"kv": "fp8", "weights": "fp8", **worker}.items()]
    if tokenizer is not None:
        lines += ['[pools."llama-3.1-8b"]', f"tokenizer = {json.dumps(tokenizer)}"]
    path = folder / "fabric.toml"
    path.write_text("\n".join(lines))
    return path

"""The least a Python gateway can do: aiohttp's server and client, every request to the next upstream, nothing read, nothing
decided. It shows how much of the gateway's cost is HTTP in Python and how much is the gateway.

    python bench/rig/proxy.py URL [URL]...
"""

import asyncio
import itertools
import sys

import aiohttp
import uvloop
from aiohttp import web

_NOT_FORWARDED = ("host", "content-length", "transfer-encoding", "accept-encoding")


async def _serve(urls: list[str]) -> None:
    upstreams = itertools.cycle(urls)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
    ) as session:

        async def forward(request: web.Request) -> web.StreamResponse:
            body = await request.read()
            headers = {k: v for k, v in request.headers.items() if k.lower() not in _NOT_FORWARDED}
            async with session.post(next(upstreams) + request.path, data=body, headers=headers) as upstream:
                kind = {"Content-Type": upstream.headers["Content-Type"]}
                if upstream.content_length is not None:
                    return web.Response(status=upstream.status, body=await upstream.read(), headers=kind)
                response = web.StreamResponse(status=upstream.status, headers=kind)
                await response.prepare(request)
                async for chunk in upstream.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
                return response

        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/chat/completions", forward)
        server = web.AppRunner(app, access_log=None)
        await server.setup()
        await web.TCPSite(server, "127.0.0.1", 0).start()
        print(f"listening on http://127.0.0.1:{server.addresses[0][1]}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(sys.argv[1:]))

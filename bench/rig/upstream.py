"""A model server that answers at once, in a process of its own: what is measured in front of it is not its own time.

    python bench/rig/upstream.py [PORTS]

It listens on that many free ports, prints them on one line and serves until it is stopped. The header `x-mock` orders the
answer: `json` is one completion of about 400 bytes, `sse N PACE_MS` is N stream chunks of about 200 bytes and `[DONE]`,
each in a write of its own, one every PACE_MS or, at 0, as fast as the event loop turns. The control endpoints are those by
which a gateway recognises vLLM and its load.
"""

import asyncio
import json
import sys
from typing import cast

import uvloop

MODEL = "llama-3.1-8b"
_CARD = {"id": MODEL, "object": "model", "owned_by": "vllm", "max_model_len": 131_072}
_USAGE = {
    "prompt_tokens": 50,
    "completion_tokens": 20,
    "total_tokens": 70,
    "prompt_tokens_details": {"cached_tokens": 32},
}
_METRICS = f"""vllm:num_requests_running{{model_name="{MODEL}"}} 0
vllm:num_requests_waiting{{model_name="{MODEL}"}} 0
vllm:kv_cache_usage_perc{{model_name="{MODEL}"}} 0.1
vllm:cache_config_info{{block_size="16",num_gpu_blocks="4000000"}} 1
""".encode()


def _response(kind: str, body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def _event(**more: object) -> bytes:
    fields = {"id": "chatcmpl-0123456789abcdef", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    return _chunk(b"data: " + json.dumps({**fields, **more}).encode() + b"\n\n")


_CHOICE = {"index": 0, "message": {"role": "assistant", "content": "word " * 20}, "finish_reason": "stop"}
_ANSWER = {"id": "chatcmpl-0123456789abcdef", "object": "chat.completion", "created": 1, "model": MODEL}
_JSON = _response("application/json", json.dumps({**_ANSWER, "choices": [_CHOICE], "usage": _USAGE}).encode())
_SSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
_TOKEN = _event(choices=[{"index": 0, "delta": {"content": " word"}, "logprobs": None, "finish_reason": None}])
_LAST = _event(choices=[], usage=_USAGE) + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
_CONTROL = {
    b"/v1/models": _response("application/json", json.dumps({"object": "list", "data": [_CARD]}).encode()),
    b"/metrics": _response("text/plain", _METRICS),
    b"/health": _response("text/plain", b""),
}
_MISSING = _response("application/json", b"{}", "404 Not Found")


class Server(asyncio.Protocol):
    """HTTP/1.1 with keep-alive, without pipelining; bodies by length or in chunks."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._head: bytes | None = None  # of the request whose body is being read
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._head is None:
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return
            self._head = bytes(self._received[: end + 2])
            del self._received[: end + 4]
            length = _header(self._head, b"content-length")
            self._body_bytes = int(length) if length else 0
            self._is_chunked = _header(self._head, b"transfer-encoding") == b"chunked"
        if self._is_chunked:
            whole = self._received.endswith(b"0\r\n\r\n")
        else:
            whole = len(self._received) >= self._body_bytes
        if whole:
            head, self._head = self._head, None
            self._received.clear()
            self._answer(head)

    def _answer(self, head: bytes) -> None:
        path = head.split(b" ", 2)[1]
        if head.startswith(b"GET"):
            self._transport.write(_CONTROL.get(path, _MISSING))
            return
        order = (_header(head, b"x-mock") or b"json").split()
        if order[0] == b"json":
            self._transport.write(_JSON)
            return
        self._transport.write(_SSE_HEAD)
        self._send(int(order[1]), int(order[2]) / 1000)

    def _send(self, chunks_left: int, pace_s: float) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(_TOKEN if chunks_left else _LAST)
        if not chunks_left:
            return
        if pace_s:
            self._loop.call_later(pace_s, self._send, chunks_left - 1, pace_s)
        else:
            self._loop.call_soon(self._send, chunks_left - 1, pace_s)


def _header(head: bytes, name: bytes) -> bytes | None:
    lowered = head.lower()
    start = lowered.find(b"\r\n" + name + b":")
    if start < 0:
        return None
    start += len(name) + 3
    return head[start : head.index(b"\r\n", start)].strip()


async def _serve(ports: int) -> None:
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(Server, "127.0.0.1", 0) for _ in range(ports)]
    print(*(server.sockets[0].getsockname()[1] for server in servers), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(int(sys.argv[1]) if len(sys.argv) > 1 else 1))

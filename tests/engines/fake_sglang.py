"""A stand-in for SGLang's server. Not recorded traffic: answers in the shape that SGLang 0.5.23 documents in its source and was
seen to give on a CPU; after `be_old`, in that of 0.4.9, which has fewer endpoints and describes itself less."""

import asyncio
import json
from typing import Any

from aiohttp import web
from engine_fakes import KvPublisher, port_of

SERVER_INFO: dict[str, Any] = {
    "model_path": "/models/tiny",
    "served_model_name": "tiny",
    "context_length": None,
    "skip_tokenizer_init": False,
    "page_size": 16,
    "dp_size": 1,
    "attn_dp_size": 1,
    "schedule_policy": "fcfs",
    "enable_priority_scheduling": True,
    "schedule_low_priority_values_first": False,
    "priority_scheduling_preemption_threshold": 10,
    "radix_eviction_policy": "lru",
    "disable_radix_cache": False,
    "speculative_algorithm": None,
    "enable_metrics": False,
    "enable_lora": None,
    "enable_hierarchical_cache": False,
    "hicache_storage_backend": None,
    "enable_session_radix_cache": False,
    "kv_events_config": None,
    "status": "ready",
    "max_total_num_tokens": 16384,
    "max_req_input_len": 16378,
    "kv_events": None,
    "max_running_requests": None,
    "internal_states": [{"effective_max_running_requests_per_dp": 2048, "memory_usage": {"token_capacity": 16384}}],
    "version": "0.5.23",
}
RANK_LOAD: dict[str, Any] = {
    "timestamp": 1.5,
    "dp_rank": 0,
    "num_running_reqs": 3,
    "num_waiting_reqs": 2,
    "num_waiting_uncached_tokens": 70,
    "num_used_tokens": 8192,
    "max_total_num_tokens": 16384,
    "max_running_requests": 2048,
    "token_usage": 0.5,
    "gen_throughput": 0.0,
    "cache_hit_rate": 0.0,
    "decode_moments": None,
}
METRICS = """\
# HELP sglang:num_running_reqs The number of running requests.
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{dp_rank="0",engine_type="unified",model_name="tiny",priority="",tp_rank="0"} 3.0
sglang:num_running_reqs{dp_rank="0",engine_type="unified",model_name="tiny",priority="",tp_rank="1"} 3.0
sglang:num_running_reqs{dp_rank="1",engine_type="unified",model_name="tiny",priority="",tp_rank="2"} 1.0
sglang:num_running_reqs{dp_rank="0",engine_type="unified",model_name="tiny",priority="-9223372036854775808",tp_rank="0"} 2.0
sglang:num_running_reqs{dp_rank="0",engine_type="unified",model_name="tiny",priority="7",tp_rank="0"} 1.0
sglang:num_queue_reqs{dp_rank="0",engine_type="unified",model_name="tiny",priority="",tp_rank="0"} 2.0
sglang:num_queue_reqs{dp_rank="0",engine_type="unified",model_name="tiny",priority="7",tp_rank="0"} 3.0
sglang:token_usage{dp_rank="0",engine_type="unified",model_name="tiny",tp_rank="0"} 0.5
sglang:token_usage{dp_rank="1",engine_type="unified",model_name="tiny",tp_rank="2"} 0.25
sglang:page_size{dp_rank="0",model_name="tiny",tp_rank="0"} 64.0
sglang:max_total_num_tokens{dp_rank="0",model_name="tiny",tp_rank="0"} 1000.0
sglang:max_total_num_tokens{dp_rank="1",model_name="tiny",tp_rank="2"} 1000.0
"""


class FakeSglang:
    """Endpoints whose answers a test may change while it runs; None: there is no such endpoint."""

    def __init__(self, publisher: KvPublisher | None = None) -> None:
        self.owned_by = "sglang"
        self.server_info: Any = dict(SERVER_INFO)
        self.old_server_info: Any = None
        self.loads: Any = {"timestamp": "2026-01-01T00:00:00+00:00", "version": "0.5.23", "loads": [RANK_LOAD]}
        self.metrics: str | None = None
        self.tokenize = True
        self.bodies: list[bytes] = []
        self.aborted: list[dict[str, Any]] = []
        self.hang = False  # generation begins and does not end
        if publisher is not None:
            self.tell(publisher)

    def tell(self, publisher: KvPublisher) -> None:
        self.server_info["kv_events"] = {
            "publisher": "zmq",
            "endpoint_host": "*",
            "endpoint_port_base": port_of(publisher.endpoint),
            "replay_endpoint_port_base": port_of(publisher.replay_endpoint),
            "topic": "kv-events",
            "block_size": 16,
            "dp_size": 1,
        }

    def be_old(self) -> None:
        """0.4.9: one endpoint fewer under its later name, no loads, no description of the publisher."""
        new = ("kv_events", "attn_dp_size", "enable_priority_scheduling", "schedule_low_priority_values_first")
        self.old_server_info = {k: v for k, v in self.server_info.items() if k not in new} | {"version": "0.4.9"}
        self.server_info = self.loads = None
        self.metrics, self.tokenize = METRICS, False

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/server_info", lambda _: self._say(self.server_info))
        app.router.add_get("/get_server_info", lambda _: self._say(self.old_server_info))
        app.router.add_get("/v1/loads", lambda _: self._say(self.loads))
        if self.tokenize:
            app.router.add_post("/tokenize", self._health)
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank"):
            app.router.add_post(path, self._generate)
        app.router.add_post("/abort_request", self._abort)
        return app

    async def _models(self, _: web.Request) -> web.Response:
        base = {"id": "tiny", "object": "model", "owned_by": self.owned_by, "root": "tiny", "max_model_len": 16384}
        adapter = {"id": "tuned", "object": "model", "owned_by": self.owned_by, "parent": "tiny", "max_model_len": None}
        return web.json_response({"object": "list", "data": [base, adapter]})

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(status=404) if self.metrics is None else web.Response(text=self.metrics)

    async def _say(self, value: Any) -> web.Response:
        if value is None or isinstance(value, int):
            return web.Response(status=value or 404)
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return web.Response(body=body, content_type="application/json")

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.read())
        if not self.hang:
            return web.json_response({"id": "x"})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: {}\n\n")
        await asyncio.Event().wait()  # until the client is gone
        return response

    async def _abort(self, request: web.Request) -> web.Response:
        self.aborted.append(await request.json())
        return web.Response()

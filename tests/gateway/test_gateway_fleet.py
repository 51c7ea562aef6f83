"""Workers that come, go, drain and return while the gateway runs."""

import asyncio

from gateway_kit import FAST, FakeEngine, config, fake_engine, gateway_of, until

from amf.config import ServeConfig, WorkerConfig
from amf.gateway.service import running_gateway


async def test_workers_are_added_and_removed_at_run_time() -> None:
    async with (
        fake_engine() as engine,
        fake_engine(FakeEngine(model="other")) as other,
        gateway_of(engine) as (_, client),
    ):
        added = await client.request(
            "POST", "/amf/v1/workers", json={"url": other.url, "name": "late", "kv_tokens": 5000}
        )
        assert (added.status, added.json["status"], added.json["pool"], added.json["kv_tokens"]) == (
            201,
            "up",
            "other",
            5000,
        )
        models = (await client.request("GET", "/v1/models")).json["data"]
        assert [model["id"] for model in models] == ["other", "tiny"]
        body = {"model": "other", "messages": [{"role": "user", "content": "x"}]}
        assert (await client.request("POST", "/v1/chat/completions", json=body)).headers["x-amf-worker"] == "late"
        again = await client.request("POST", "/amf/v1/workers", json={"url": other.url, "name": "late"})
        assert (again.status, again.code) == (409, "worker_exists")
        assert (await client.request("DELETE", "/amf/v1/workers/late")).status == 200
        assert (await client.request("POST", "/v1/chat/completions", json=body)).code == "model_not_found"
        assert (await client.request("DELETE", "/amf/v1/workers/late")).code == "worker_not_found"


async def test_bad_workers_are_turned_away() -> None:
    async with fake_engine() as engine, gateway_of(engine) as (_, client):
        for form, word in (
            ({"url": "10.0.0.1:80"}, "http://"),
            ({"urll": "http://x"}, "did you mean `url`"),
            ({"url": 5}, "str"),
            ({"url": "http://x", "gpu": "h2000"}, "h200"),
            ({}, "url"),
        ):
            answer = await client.request("POST", "/amf/v1/workers", json=form)
            assert answer.status == 400 and word in answer.json["error"]["message"], answer.body
        listed = (await client.request("GET", "/amf/v1/workers")).json["workers"]
        assert [worker["name"] for worker in listed] == ["w0"]


async def test_a_draining_worker_finishes_and_takes_nothing_new() -> None:
    async with (
        fake_engine(FakeEngine(fault="hold")) as one,
        fake_engine() as two,
        gateway_of(one, two, policy="round-robin") as (_, client),
    ):
        first = asyncio.create_task(client.chat("a"))
        await until(lambda: one.running == 1)
        assert (await client.request("POST", "/amf/v1/workers/w0/drain")).json["status"] == "draining"
        for _ in range(3):
            assert (await client.chat("b")).headers["x-amf-worker"] == "w1"
        one.release.set()
        assert (await first).status == 200


async def test_a_removed_worker_gives_its_calls_back() -> None:
    async with (
        fake_engine(FakeEngine(fault="hold")) as one,
        fake_engine() as two,
        gateway_of(one, two, policy="round-robin") as (gateway, client),
    ):
        call = asyncio.create_task(client.chat("a"))
        await until(lambda: one.running == 1)
        assert (await client.request("DELETE", "/amf/v1/workers/w0")).status == 200
        answer = await call
        assert (answer.status, answer.headers["x-amf-worker"]) == (200, "w1")
        await until(lambda: one.cancelled == 1)
        gateway.fabric.check_invariants()


async def test_a_worker_that_is_late_joins_when_it_answers() -> None:
    async with fake_engine() as engine:
        port = int(engine.url.rsplit(":", 1)[1])
    settings = ServeConfig(workers=(WorkerConfig(url=f"http://127.0.0.1:{port}", name="w0"),))
    settings = config(FakeEngine(url=settings.workers[0].url), limits=FAST)
    async with running_gateway(settings) as gateway:
        assert gateway.fleet.describe("w0")["status"] == "connecting"
        async with fake_engine(port=port):
            await until(lambda: gateway.fleet.up() == 1)


async def test_without_workers_the_client_is_told_to_come_back() -> None:
    async with gateway_of() as (_, client):
        answer = await client.chat("hi")
        assert (answer.status, answer.code) == (503, "no_worker")
        assert int(answer.headers["retry-after-ms"]) > 0
        assert (await client.request("GET", "/ready")).status == 503

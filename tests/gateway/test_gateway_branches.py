"""Branch groups through a live gateway: decisions by route, body and header, and what the losers' clients are told."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from gateway_kit import Answer, Client, FakeEngine, fake_engine, gateway_of, until

from amf.config import ServerConfig
from amf.core.config import FabricConfig
from amf.core.fabric import Fabric
from amf.core.policy.bundles import policies_named
from amf.gateway.service import Gateway

RUNS = "/amf/v1/runs"


@dataclass
class Fork:
    """Alternatives of one run before an engine that answers when it is told."""

    gateway: Gateway
    client: Client
    engine: FakeEngine
    asked: dict[str, asyncio.Task[Answer]] = field(default_factory=dict)

    async def launch(self, *paths: str, kind: str = "best_of", **more: Any) -> None:
        """All of a best_of group are needed, so all are launched at once."""
        for path in paths:
            group, _, alternative = path.rpartition("/")
            branch = {"group": group, "alternative": alternative, "kind": kind}
            amf = {"run_id": "r", "branch": branch, "hop": f"hop {path}"}
            self.asked[path] = asyncio.create_task(self.client.chat(path, amf=amf, **more))
        await until(lambda: self.engine.running == len(self.asked))

    async def decide(self, run_id: str = "r", **body: Any) -> Answer:
        return await self.client.request("POST", f"{RUNS}/{run_id}/commit", json=body)

    async def settled(self) -> None:
        """Everything has ended, on both sides."""
        self.engine.release.set()
        await asyncio.gather(*self.asked.values())
        await until(lambda: self.gateway.driver.open_calls() == 0 and self.engine.running == 0)
        totals = self.gateway.fabric.totals()
        assert totals["live_calls"] == 0 and totals["calls"] == totals["finished"] + totals["cancelled"]
        assert all(report["committed_tokens"] == 0 for report in self.gateway.fabric.worker_reports())
        self.gateway.fabric.check_invariants()

    def counted(self, name: str, **labels: str) -> float:
        return self.gateway.metrics.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def fork(fault: str = "hold", **more: Any) -> AsyncIterator[Fork]:
    async with (
        fake_engine(FakeEngine(fault=fault)) as engine,
        gateway_of(engine, policy="fabric", **more) as (gateway, client),
    ):
        made = Fork(gateway, client, engine)
        yield made
        for task in made.asked.values():
            task.cancel()


async def test_a_commit_ends_the_others() -> None:
    async with fork() as made:
        await made.launch("g/a", "g/b", "g/c")
        answer = await made.decide(group="g", commit="a")
        assert (answer.status, answer.json) == (
            200,
            {"cancelled_calls": 2, "alternatives": {"a": "committed", "b": "discarded", "c": "discarded"}},
        )
        for name in ("b", "c"):
            lost = await made.asked[f"g/{name}"]
            assert (lost.status, lost.code, lost.headers["x-should-retry"]) == (410, "branch_cancelled", "false")
            assert (lost.headers["x-amf-run-id"], lost.headers["x-amf-hop-id"]) == ("r", f"hop g/{name}")
            assert "retry-after-ms" not in lost.headers and lost.json["error"]["message"]
        await until(lambda: made.engine.cancelled == 2)
        again = await made.decide(group="g", commit="b")
        assert again.json["cancelled_calls"] == 0 and again.json["alternatives"]["b"] == "discarded"
        await made.settled()
        assert made.asked["g/a"].result().status == 200
        assert made.counted("amf_branch_calls_cancelled_total", stage="running") == 2
        assert made.counted("amf_branches_decided_total", outcome="committed") == 2


async def test_a_discard_alone_leaves_the_group_open() -> None:
    async with fork() as made:
        await made.launch("g/a", "g/b", "g/c")
        answer = await made.decide(group="g", discard=["b"])
        assert answer.json == {
            "cancelled_calls": 1,
            "alternatives": {"a": "open", "b": "discarded", "c": "open"},
        }
        assert (await made.asked["g/b"]).code == "branch_cancelled"
        await until(lambda: made.engine.running == 2)
        await made.settled()
        assert made.asked["g/a"].result().status == made.asked["g/c"].result().status == 200
        assert made.counted("amf_branches_decided_total", outcome="discarded") == 1


async def test_what_comes_after_its_branch_has_lost_touches_no_engine() -> None:
    async with fork() as made:
        await made.launch("g/a", "g/b")
        await made.decide(group="g", commit="a")
        await made.asked["g/b"]
        seen = len(made.engine.bodies)
        for path in ("g/b", "g/b/h/x", "g/new"):
            late = await made.client.chat("later", headers={"x-amf-run-id": "r", "x-amf-branch": path})
            assert (late.status, late.code, late.headers["x-should-retry"]) == (410, "branch_cancelled", "false")
            said = (await made.client.request("GET", f"/amf/v1/explain/{late.headers['x-request-id']}")).json
            assert said["decisions"][0]["because"]["reason"]
        assert len(made.engine.bodies) == seen
        assert made.counted("amf_branch_calls_cancelled_total", stage="late") == 3
        await made.settled()


@pytest.mark.parametrize(
    ("amf", "headers"),
    [
        ({"commit": {"group": "g", "alternative": "a"}}, {}),
        ({"commit": "g/a"}, {}),
        ({"discard": ["g/b", "g/c"]}, {}),
        ({}, {"x-amf-commit": "g/a"}),
        ({"parents": ["hop g/a"]}, {}),
    ],
    ids=["object", "text", "discard", "header", "implicit"],
)
async def test_a_later_call_decides(amf: dict[str, Any], headers: dict[str, str]) -> None:
    async with fork() as made:
        await made.launch("g/a", "g/b", "g/c")
        amf = {"run_id": "r", "hop": "next", **amf}
        after = asyncio.create_task(made.client.chat("next", amf=amf, headers=headers))
        for name in ("b", "c"):
            assert (await made.asked[f"g/{name}"]).code == "branch_cancelled"
        await until(lambda: made.engine.cancelled == 2 and made.engine.running == 2)  # a and the call itself
        await made.settled()
        assert (await after).status == made.asked["g/a"].result().status == 200
        assert b"commit" not in made.engine.bodies[-1], "the amf object stays here"


async def test_a_stream_under_way_ends_with_the_error() -> None:
    async with fork("pause") as made:
        seen: dict[str, bytes] = {}

        async def read(alternative: str) -> None:
            branch = {"group": "g", "alternative": alternative, "kind": "best_of"}
            body = {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": alternative}]}
            body["amf"] = {"run_id": "r", "branch": branch}
            async with made.client.session.post(made.client.url + "/v1/chat/completions", json=body) as response:
                async for chunk in response.content.iter_any():
                    seen[alternative] = seen.get(alternative, b"") + chunk

        reading = [asyncio.create_task(read(each)) for each in ("a", "b")]
        await until(lambda: len(seen) == 2)
        await made.decide(group="g", commit="a")
        await reading[1]
        *_, last = seen["b"].decode().strip().split("\n\n")
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "branch_cancelled"
        assert seen["b"].startswith(made.engine.sse()[0]) and b"[DONE]" not in seen["b"]
        await until(lambda: made.engine.cancelled == 1)
        await made.settled()
        await reading[0]
        assert seen["a"] == b"".join(made.engine.sse())


async def test_inner_groups_share_the_fate_of_the_alternative_around_them() -> None:
    async with fork() as made:
        await made.launch("g/a", "g/a/h/x", "g/a/h/y", "g/b", "g/b/h/x")
        answer = await made.decide(group="g/a/h", commit="y")
        assert answer.json == {"cancelled_calls": 1, "alternatives": {"x": "discarded", "y": "committed"}}
        answer = await made.decide(group="g", discard="a")
        assert answer.json["cancelled_calls"] == 2
        for path in ("g/a", "g/a/h/x", "g/a/h/y"):
            assert (await made.asked[path]).code == "branch_cancelled"
        await until(lambda: made.engine.running == 2)
        report = (await made.client.request("GET", f"{RUNS}/r")).json
        assert report["groups"]["g"]["alternatives"]["a"] == {"fate": "discarded", "open_calls": 0}
        assert report["groups"]["g/b/h"]["alternatives"]["x"] == {"fate": "open", "open_calls": 1}
        await made.settled()


async def test_what_waits_is_withdrawn() -> None:
    """One place on the worker, taken: the alternatives wait behind it."""
    async with fork() as made:
        worker = {"url": made.engine.url, "name": "narrow", "max_running": 1}
        await made.client.request("DELETE", "/amf/v1/workers/w0")
        await made.client.request("POST", "/amf/v1/workers", json=worker)
        await until(lambda: made.gateway.fleet.up() == 1)
        await made.launch("g/a")
        waits = asyncio.create_task(
            made.client.chat("b", amf={"run_id": "r", "branch": {"group": "g", "alternative": "b", "kind": "best_of"}})
        )
        await until(lambda: made.gateway.fabric.totals()["waiting"] == {"tiny": 1})
        assert (await made.decide(group="g", commit="a")).json["cancelled_calls"] == 1
        assert (await waits).code == "branch_cancelled"
        assert len(made.engine.bodies) == 1
        assert made.counted("amf_branch_calls_cancelled_total", stage="waiting") == 1
        await made.settled()


async def test_explain_says_why_an_alternative_waits_and_when_it_was_launched() -> None:
    """Speculation at a price that nothing is worth: the second attempt waits until the first has failed."""
    dear = Fabric(FabricConfig(branch_price=1e9), policies_named("fabric"))
    async with fork(fabric=dear) as made:
        await made.launch("g/a", kind="first_success")
        branch = {"group": "g", "alternative": "b"}
        second = asyncio.create_task(made.client.chat("b", amf={"run_id": "r", "branch": branch}))
        await until(lambda: made.gateway.fabric.totals()["waiting"] == {"tiny": 1})
        await made.decide(group="g", discard="a")
        await until(lambda: len(made.engine.bodies) == 2)
        await made.settled()
        path = f"/amf/v1/explain/{(await second).headers['x-request-id']}"
        said = (await made.client.request("GET", path)).json["decisions"]
        assert [each["type"] for each in said] == ["Hold", "Dispatch"]
        assert "not launched: needed with odds 0.50" in said[0]["because"]["reason"]
        text = (await made.client.request("GET", path + "?format=text")).body.decode()
        assert said[0]["because"]["reason"] in text


@pytest.mark.parametrize(
    ("run", "body", "status", "code"),
    [
        ("nobody", {"group": "g", "commit": "a"}, 404, "run_not_found"),
        ("r", {"group": "h", "commit": "a"}, 404, "group_not_found"),
        ("r", {"group": "g"}, 400, "invalid_branch"),
        ("r", {"group": "g", "commit": []}, 400, "invalid_branch"),
        ("r", {"group": "g/a", "commit": "b"}, 400, "invalid_branch"),
        ("r", {"group": "g", "commit": "a", "discard": "a"}, 400, "invalid_branch"),
        ("r", {"group": "g", "comit": "a"}, 400, "invalid_field"),
        ("r", {"group": "g", "commit": 1}, 400, "invalid_field"),
        ("r", {"commit": "a"}, 400, "invalid_field"),
    ],
)
async def test_decisions_that_make_no_sense_change_nothing(
    run: str, body: dict[str, Any], status: int, code: str
) -> None:
    async with fork() as made:
        await made.launch("g/a", "g/b")
        before = made.gateway.fabric.run_report("r")["groups"]
        answer = await made.decide(run, **body)
        assert (answer.status, answer.code) == (status, code) and len(answer.json["error"]["message"]) > 20
        assert made.gateway.fabric.run_report("r")["groups"] == before and made.engine.cancelled == 0
        await made.settled()


async def test_only_its_own_tenant_decides() -> None:
    server = ServerConfig(port=0, shutdown_grace_s=0.5, api_keys=("one", "two"))
    async with fork(server=server) as made:
        await made.launch("g/a", "g/b", headers={"x-api-key": "one"})
        send = {"json": {"group": "g", "commit": "a"}}
        other = await made.client.request("POST", f"{RUNS}/r/commit", headers={"x-api-key": "two"}, **send)
        assert (other.status, other.code) == (404, "run_not_found")
        headers = {"x-api-key": "two", "x-amf-run-id": "r", "x-amf-commit": "g/a"}
        mine = asyncio.create_task(made.client.chat("of another run named r", headers=headers))
        await until(lambda: made.engine.running == 3)
        own = await made.client.request("POST", f"{RUNS}/r/commit", headers={"x-api-key": "one"}, **send)
        assert own.json["cancelled_calls"] == 1
        await made.settled()
        assert (await mine).status == 200


async def test_a_run_whose_loser_ends_last_has_met_its_deadline() -> None:
    async with fork() as made:
        made.engine.release.set()
        await made.client.chat("plan", amf={"run_id": "r", "deadline_ms": 60_000})
        made.engine.release.clear()
        await made.launch("g/a")
        await made.decide(group="g", discard="a")
        await made.asked["g/a"]
        await made.client.request("POST", f"{RUNS}/r/close")
        await made.client.request("GET", "/metrics")
        labels = {"graph": "", "slo_class": "interactive"}
        counts = [made.counted("amf_deadline_pipelines_total", outcome=each, **labels) for each in ("met", "cancelled")]
        assert counts == [1, 0]

"""The control API under /amf/v1: graphs, runs, explanations, workers. JSON in and out, errors in the OpenAI form."""

from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from aiohttp import web

from amf.config import ConfigError, WorkerConfig, check_worker, parse_table
from amf.core.events import GraphDeclared
from amf.core.graph import GraphError, graph_from_dict
from amf.gateway.auth import Keys
from amf.gateway.body import DecisionForm, read_json
from amf.gateway.branches import decision_of
from amf.gateway.driver import Driver
from amf.gateway.explain import Explained, as_json, as_text
from amf.gateway.fleet import Fleet
from amf.gateway.graph_text import learned_text
from amf.gateway.graphs import Graphs
from amf.gateway.intake import public_run_id, scoped_run_id
from amf.gateway.problem import Problem, bad_request
from amf.gateway.profiles import check_assumptions

_MAX_RUNS = 1000
_decode_decision = msgspec.json.Decoder(DecisionForm).decode
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode


class Reports(Protocol):
    """The fabric's read-only snapshots."""

    def run_report(self, run_id: str) -> dict[str, Any] | None: ...

    def run_reports(self, limit: int) -> list[dict[str, Any]]: ...

    def worker_reports(self) -> list[dict[str, Any]]: ...

    def graph_report(self, name: str) -> dict[str, Any] | None: ...

    def totals(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    driver: Driver
    fleet: Fleet
    reports: Reports
    graphs: Graphs
    explained: Explained
    keys: Keys

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/amf/v1/graphs", self._declare),
            web.get("/amf/v1/graphs", self._list_graphs),
            web.get("/amf/v1/graphs/{name}", self._graph),
            web.get("/amf/v1/runs", self._list_runs),
            web.get("/amf/v1/runs/{run_id}", self._run),
            web.post("/amf/v1/runs/{run_id}/cancel", self._cancel_run),
            web.post("/amf/v1/runs/{run_id}/close", self._close_run),
            web.post("/amf/v1/runs/{run_id}/commit", self._decide_branches),
            web.get("/amf/v1/explain/{request_id}", self._explain),
            web.get("/amf/v1/totals", self._totals),
            web.get("/amf/v1/workers", self._list_workers),
            web.post("/amf/v1/workers", self._add_worker),
            web.delete("/amf/v1/workers/{name}", self._remove_worker),
            web.post("/amf/v1/workers/{name}/drain", self._drain_worker),
        ]

    async def _declare(self, request: web.Request) -> web.Response:
        self._check_trust(request)
        form = await _json_object(request)
        try:
            graph = graph_from_dict(form)
        except GraphError as error:
            raise bad_request(f"The graph makes no sense: {error}", code="invalid_graph") from error
        self.driver.submit(GraphDeclared, graph=graph)
        self.graphs.declare(graph)
        return _json({"name": graph.name, "hops": len(graph.hops), "edges": len(graph.edges)}, status=201)

    async def _list_graphs(self, request: web.Request) -> web.Response:
        return _json({"graphs": self.graphs.documents()})

    async def _graph(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        graph = self.graphs.get(name)
        if graph is None:
            message = f"No graph named `{name}` is declared: GET /amf/v1/graphs lists them, POST declares one."
            raise Problem(404, "graph_not_found", message, retry=False)
        learned = self.reports.graph_report(name)
        if request.query.get("format") == "text":
            return web.Response(text=learned_text(name, learned))
        return _json({"declared": graph.to_dict(), "learned": learned})

    async def _list_runs(self, request: web.Request) -> web.Response:
        limit = _limit(request)
        tenant = self._tenant(request)
        reports = self.reports.run_reports(_MAX_RUNS if tenant else limit)
        own = [report for report in reports if not tenant or str(report["run_id"]).startswith(f"{tenant}/")]
        return _json({"runs": [_public(report, tenant) for report in own[:limit]]})

    async def _run(self, request: web.Request) -> web.Response:
        tenant = self._tenant(request)
        run_id = request.match_info["run_id"]
        report = self.reports.run_report(scoped_run_id(run_id, tenant))
        if report is None:
            raise _no_run(run_id)
        return _json(_public(report, tenant))

    async def _cancel_run(self, request: web.Request) -> web.Response:
        run_id = self._known_run(request)
        return _json({"cancelled_calls": self.driver.cancel_run(run_id)})

    async def _close_run(self, request: web.Request) -> web.Response:
        run_id = self._known_run(request)
        return _json({"open_calls": self.driver.close_run(run_id)})

    async def _decide_branches(self, request: web.Request) -> web.Response:
        run_id = self._known_run(request)
        decision = decision_of(read_json(await request.read(), _decode_decision))
        self._check_group(run_id, decision.group)
        cancelled = self.driver.decide(run_id, decision)
        alternatives = self._groups(run_id).get(decision.group, {}).get("alternatives", {})
        fates = {name: alternative["fate"] for name, alternative in alternatives.items()}
        return _json({"cancelled_calls": cancelled, "alternatives": fates})

    async def _explain(self, request: web.Request) -> web.Response:
        call_id = request.match_info["request_id"]
        entries = self.explained.decisions(call_id)
        if not entries:
            message = f"No decisions are kept for `{call_id}`: use the x-request-id of a recent answer."
            raise Problem(404, "request_not_found", message, retry=False)
        if request.query.get("format") == "text":
            return web.Response(text=as_text(call_id, entries))
        return _json({"request_id": call_id, "decisions": as_json(entries)})

    async def _totals(self, request: web.Request) -> web.Response:
        return _json(self.reports.totals())

    async def _list_workers(self, request: web.Request) -> web.Response:
        believed = {report.get("name"): report for report in self.reports.worker_reports()}
        workers = [{**self.fleet.describe(name), "fabric": believed.get(name)} for name in self.fleet.names()]
        return _json({"workers": workers})

    async def _add_worker(self, request: web.Request) -> web.Response:
        self._check_trust(request)
        form = await _json_object(request)
        try:
            config = parse_table(WorkerConfig, form, "the request", "the worker")
            check_worker(config)
            check_assumptions(config)
        except ConfigError as error:
            raise bad_request(f"The worker cannot be added: {error}.", code="invalid_worker") from error
        link = await self.fleet.add(config)
        return _json(self.fleet.describe(link.name), status=201)

    async def _remove_worker(self, request: web.Request) -> web.Response:
        self._check_trust(request)
        name = request.match_info["name"]
        await self.fleet.remove(name)
        return _json({"removed": name})

    async def _drain_worker(self, request: web.Request) -> web.Response:
        self._check_trust(request)
        name = request.match_info["name"]
        self.fleet.drain(name)
        return _json(self.fleet.describe(name))

    def _known_run(self, request: web.Request) -> str:
        run_id = scoped_run_id(request.match_info["run_id"], self._tenant(request))
        if self.reports.run_report(run_id) is None:
            raise _no_run(request.match_info["run_id"])
        return run_id

    def _groups(self, run_id: str) -> dict[str, Any]:
        report = self.reports.run_report(run_id)
        groups: dict[str, Any] = report["groups"] if report else {}
        return groups

    def _check_group(self, run_id: str, group: str) -> None:
        known = self._groups(run_id)
        if group not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            message = f"The run knows no branch group `{group}`, {has}: name one by the path that its calls sent."
            raise Problem(404, "group_not_found", message, retry=False)

    def _tenant(self, request: web.Request) -> str:
        return self.keys.caller(request.headers).tenant

    def _check_trust(self, request: web.Request) -> None:
        self.keys.check_fleet_access(self.keys.caller(request.headers))


def _no_run(run_id: str) -> Problem:
    message = f"There is no run `{run_id}`: use the x-amf-run-id of a recent answer."
    return Problem(404, "run_not_found", message, retry=False)


def _public(report: dict[str, Any], tenant: str) -> dict[str, Any]:
    return {**report, "run_id": public_run_id(str(report.get("run_id", "")), tenant)} if tenant else report


def _limit(request: web.Request) -> int:
    text = request.query.get("limit", "100")
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= _MAX_RUNS):
        raise bad_request(f"`limit` is `{text[:20]}`: send a number from 1 to {_MAX_RUNS}.", param="limit")
    return int(text)


async def _json_object(request: web.Request) -> dict[str, Any]:
    return read_json(await request.read(), _decode_object)


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(value), content_type="application/json")

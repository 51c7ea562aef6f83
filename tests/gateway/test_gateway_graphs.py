"""What was learned of a declared graph, asked at the control API."""

from gateway_kit import fake_engine, gateway_of

GRAPH = {
    "name": "g",
    "hops": [{"name": "plan", "pool": "tiny"}, {"name": "code", "pool": "tiny", "after": "plan"}],
    "edges": [{"from": "code", "to": "plan", "p": 0.3, "loop": 3}],
}


async def test_evidence_grows_with_every_run_and_looking_changes_nothing() -> None:
    async with fake_engine() as engine, gateway_of(engine, policy="fabric") as (gateway, client):
        await client.request("POST", "/amf/v1/graphs", json=GRAPH)
        fresh = (await client.request("GET", "/amf/v1/graphs/g")).json
        assert fresh["declared"]["name"] == "g" and fresh["learned"]["pipelines"] is None
        assert fresh["learned"]["hops"][0]["service_s"]["source"] == "default"
        assert "no pipeline has ended" in (await client.request("GET", "/amf/v1/graphs/g?format=text")).body.decode()
        for number in range(10):
            head = {"x-amf-run-id": f"r{number}", "x-amf-pipeline": "g", "x-amf-deadline-ms": "60000"}
            await client.chat("hi", headers={**head, "x-amf-hop": "plan"})
            await client.chat("go on", headers={**head, "x-amf-hop": "code", "x-amf-parents": "plan"})
            again = {"x-amf-hop": "plan", "x-amf-parents": "code", "x-amf-final": "true"}
            last = await client.chat("once more", headers={**head, **again})
            assert last.status == 200, last.body
        learned = (await client.request("GET", "/amf/v1/graphs/g")).json["learned"]
        plan, code = learned["hops"]
        assert (plan["service_s"]["evidence"], plan["service_s"]["source"]) == (20, "position")
        assert 0 < plan["service_s"]["p50"] <= plan["service_s"]["p90"] <= plan["service_s"]["p99"]
        assert plan["reached"] == {"value": 1.0, "evidence": 10} and plan["calls"] == {"value": 2.0, "evidence": 10}
        assert code["calls"] == {"value": 1.0, "evidence": 10}
        assert plan["room_after_s"] > 0.0
        loop = next(edge for edge in learned["edges"] if edge["from"] == "code")
        assert (loop["declared"], loop["taken"]["value"]) == (0.3, 1.0)
        assert loop["used"] > 0.3
        whole = learned["pipelines"]
        assert (whole["ended"], whole["with_deadline"], whole["believed"]) == (10, 10, True)
        table = (await client.request("GET", "/amf/v1/graphs/g?format=text")).body.decode()
        assert "20 position" in table and "code -> plan" in table
        before = list(gateway.fabric.book.profiles.records())
        await client.request("GET", "/amf/v1/graphs/g")
        assert list(gateway.fabric.book.profiles.records()) == before


async def test_a_graph_that_was_not_declared() -> None:
    async with fake_engine() as engine, gateway_of(engine, policy="fabric") as (_, client):
        answer = await client.request("GET", "/amf/v1/graphs/nobody")
        assert (answer.status, answer.code) == (404, "graph_not_found")

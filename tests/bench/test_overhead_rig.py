"""bench/overhead.py measures what it says: the answers are those that were ordered, the rows add up."""

import importlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def overhead(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("overhead")


@pytest.fixture
async def upstream(overhead: ModuleType) -> AsyncIterator[str]:
    async with overhead.upstreams(1) as urls:
        yield urls[0]


@pytest.mark.parametrize(("order", "events"), [("json", 0), ("sse 3 0", 5), ("sse 2 1", 4)])
async def test_the_upstream_answers_as_ordered(overhead: ModuleType, upstream: str, order: str, events: int) -> None:
    (request,) = overhead.chat_requests(upstream, 70_000, order, sessions=1, seed=1)
    connection = await overhead.connect(upstream)
    for _ in range(2):
        sample = await connection.ask(request, events)
        assert 0 < sample.first_s <= sample.total_s
    with pytest.raises(Exception, match="events, not 9"):
        await connection.ask(request, 9)
    with pytest.raises(Exception, match="404"):
        await connection.ask(b"GET /nothing HTTP/1.1\r\n\r\n", 0)
    connection.close()


def test_sessions_share_their_system_prompt_and_nothing_else(overhead: ModuleType) -> None:
    requests = overhead.chat_requests("http://h", 10_000, "sse 1 0", sessions=3, seed=1)
    bodies = [json.loads(request.partition(b"\r\n\r\n")[2]) for request in requests]
    first, *others = [body["messages"] for body in bodies]
    assert all(9_000 < len(request) < 11_500 for request in requests)
    assert [message["role"] for message in first] == ["system", "user", "assistant", "user"]
    assert all(other[0] == first[0] and other[1] != first[1] for other in others)
    assert all(body["stream"] for body in bodies)


async def test_rows_compare_a_proxy_with_the_direct_connection(overhead: ModuleType, upstream: str) -> None:
    case = overhead.Case(200, "sse 4 0")
    async with overhead.running("proxy", str(overhead.RIG / "proxy.py"), upstream) as server:
        targets = [
            overhead.Target(overhead.DIRECT, upstream, None),
            overhead.Target(overhead.BARE, server.url, server),
        ]
        direct, bare = await overhead.latency(case, targets, 20, 1)
        assert bare["added_p50_ms"] == pytest.approx(bare["p50_ms"] - direct["p50_ms"], abs=0.0011)
        assert bare["ratio_p50"] > 1
        direct, bare = await overhead.throughput(case, targets, 1, 0.2, 1)
        assert direct["rate_to_direct"] == bare["rate_to_bare"] == bare["cpu_to_bare"] == 1
        assert bare["requests"] > 0
        assert bare["rate_to_direct"] == pytest.approx(bare["requests_per_s"] / direct["requests_per_s"], abs=0.001)

"""Reading what comes back: streams in any chunking, error bodies, Prometheus text."""

import json
from itertools import pairwise

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from amf.bench.scrape import Agreement, ScrapeError, Totals, decision_us, is_fabric, scrape, totals
from amf.bench.sse import StreamReader, error_code, read_usage

CHUNKS = [
    {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
    *({"choices": [{"delta": {"content": f'word "error" {index} '}}]} for index in range(5)),
    {
        "choices": [],
        "usage": {"prompt_tokens": 7, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}},
    },
]
STREAM = b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in CHUNKS) + b"data: [DONE]\n\n"
FIRST_CONTENT_BYTE = STREAM.index(b'"content": "word') + len(b'"content": "w')


@given(st.lists(st.integers(1, len(STREAM) - 1), max_size=12))
def test_a_stream_reads_the_same_however_it_is_cut(cuts: list[int]) -> None:
    reader = StreamReader()
    edges = [0, *sorted(set(cuts)), len(STREAM)]
    for begin, end in pairwise(edges):
        reader.feed(STREAM[begin:end], float(end))
    usage = reader.usage()
    assert (usage.prompt_tokens, usage.cached_tokens, usage.output_tokens) == (7, 4, 5)
    assert reader.complete and not reader.broken and reader.error_code() is None
    assert reader.first_content_s == min(edge for edge in edges if edge >= FIRST_CONTENT_BYTE)


def test_only_the_end_of_a_long_stream_is_kept_and_suffices() -> None:
    reader = StreamReader()
    for _ in range(20_000):
        reader.feed(b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n', 1.0)
    reader.feed(STREAM, 2.0)
    assert reader.usage().prompt_tokens == 7 and len(reader._tail) < 40_000


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"error": {"code": "a", "type": "b"}}, "a"),
        ({"error": {"type": "b", "code": None}}, "b"),
        ({"code": 400, "type": "BadRequestError", "message": "m"}, "BadRequestError"),
        ({"code": 400, "message": "m"}, "unknown_error"),
        ("text", "unknown_error"),
        (None, "unknown_error"),
    ],
)
def test_an_error_gives_its_most_specific_name(body: object, code: str) -> None:
    assert error_code(body) == code


def test_usage_of_other_shapes_is_unknown_not_zero() -> None:
    assert read_usage({"usage": {"total_tokens": 9}}).prompt_tokens == 9
    assert read_usage({"usage": {"prompt_tokens": 9}}).cached_tokens is None
    assert read_usage([]).prompt_tokens is None


METRICS = """# TYPE vllm:prompt_tokens counter
vllm:prompt_tokens_total{model_name="a"} 10
vllm:prompt_tokens_total{model_name="b"} 5
# TYPE vllm:prefix_cache_hits counter
vllm:prefix_cache_hits_total 3
# TYPE amf_decision_seconds histogram
amf_decision_seconds_bucket{le="0.0001"} 50
amf_decision_seconds_bucket{le="0.001"} 100
amf_decision_seconds_bucket{le="+Inf"} 100
amf_decision_seconds_count 100
amf_decision_seconds_sum 0.01
"""


async def test_metrics_are_summed_over_labels_and_compared() -> None:
    async def text(_: web.Request) -> web.Response:
        return web.Response(text=METRICS)

    async def garbage(_: web.Request) -> web.Response:
        return web.Response(text="}{ nonsense")

    app = web.Application()
    app.router.add_get("/metrics", text)
    app.router.add_get("/bad/metrics", garbage)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        samples = await scrape(url + "/v1")
        assert totals(samples) == Totals(prompt_tokens=15, cached_tokens=3)
        assert is_fabric(samples)
        assert decision_us({}, samples, 0.5) == pytest.approx(100.0)
        assert decision_us({}, samples, 0.75) == pytest.approx(550.0)
        assert decision_us(samples, samples, 0.5) is None
        with pytest.raises(ScrapeError, match="bad/metrics"):
            await scrape(url + "/bad")
    finally:
        await runner.cleanup()
    with pytest.raises(ScrapeError, match=r"127\.0\.0\.1:9/metrics"):
        await scrape("http://127.0.0.1:9")


def test_disagreement_is_said_plainly() -> None:
    mine, theirs = Totals(prompt_tokens=15, cached_tokens=3), Totals(prompt_tokens=16, cached_tokens=3)
    assert Agreement(measured=mine, others={"workers": mine}).lines()[-1] == "The totals agree to the token."
    assert "do NOT agree (2 calls" in Agreement(measured=mine, others={"workers": theirs}, cut_off=2).lines()[-1]

"""What an answer says of its tokens: `usage`, and llama.cpp's `timings` where that says nothing."""

import json
from typing import Any

import pytest
from gateway_kit import FakeEngine, fake_engine, gateway_of
from hypothesis import given
from hypothesis import strategies as st

from amf.gateway.usage import StreamTail, Usage, usage_of

COUNTS = {"prompt_tokens": 413, "completion_tokens": 4, "total_tokens": 417}
TIMINGS = {"cache_n": 412, "prompt_n": 1, "prompt_ms": 1.491, "predicted_n": 4, "predicted_ms": 3.36}
WHOLE = Usage(prompt_tokens=413, output_tokens=4, cached_tokens=412)


def told(**members: Any) -> Usage | None:
    return usage_of(json.dumps({"choices": [], **members}).encode())


def test_timings_fill_in_what_usage_leaves_out() -> None:
    assert told(timings=TIMINGS) == WHOLE
    assert told(usage=COUNTS, timings=TIMINGS) == WHOLE
    assert told(usage={**COUNTS, "prompt_tokens_details": None}, timings=TIMINGS) == WHOLE


def test_usage_goes_first() -> None:
    usage = {**COUNTS, "prompt_tokens_details": {"cached_tokens": 0}}
    assert told(usage=usage, timings={**TIMINGS, "predicted_n": 99}) == Usage(
        prompt_tokens=413, output_tokens=4, cached_tokens=0
    )


@pytest.mark.parametrize(
    "timings",
    [
        None,
        "42 ms",
        [],
        {},
        {"prompt_n": 1, "predicted_n": 4},  # an older build: what was cached is not told, nor so the whole prompt
        {**TIMINGS, "cache_n": -1},
        {**TIMINGS, "predicted_n": "4"},
        {"total": 0.3},
    ],
)
def test_timings_of_another_kind_change_nothing(timings: Any) -> None:
    assert told(timings=timings) is None
    assert told(usage=COUNTS, timings=timings) == Usage(prompt_tokens=413, output_tokens=4, cached_tokens=None)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.sampled_from(["cache_n", "prompt_n", "predicted_n", "x"]), inner)
        ),
        max_leaves=8,
    )
)
def test_whatever_stands_under_timings_usage_is_read(timings: Any) -> None:
    usage = told(usage=COUNTS, timings=timings)
    assert usage is not None and (usage.prompt_tokens, usage.output_tokens) == (413, 4)
    assert usage.cached_tokens is None or 0 <= usage.cached_tokens <= 413


@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_a_stream_without_usage_ends_with_timings(step: int) -> None:
    """As llama.cpp's server streams chat when the client does not ask for usage."""
    chunk = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": '"timings"'}}]}
    last = {**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "length"}], "timings": TIMINGS}
    lines = [json.dumps(chunk), json.dumps(chunk), json.dumps(last), "[DONE]"]
    stream = "".join(f"data: {line}\n\n" for line in lines).encode()
    tail = StreamTail()
    for start in range(0, len(stream), step):
        tail.feed(stream[start : start + step])
    assert tail.complete()
    assert tail.usage() == WHOLE


class LlamaCpp(FakeEngine):
    """Streams no usage, but timings with the last chunk."""

    def sse(self) -> list[bytes]:
        events = super().sse()
        last = {"object": "chat.completion.chunk", "choices": [], "timings": TIMINGS}
        return [*events[:-2], f"data: {json.dumps(last)}\n\n".encode(), events[-1]]


async def test_the_fabric_learns_of_cached_tokens_from_a_stream_without_usage() -> None:
    async with fake_engine(LlamaCpp()) as engine, gateway_of(engine) as (gateway, client):
        assert (await client.chat("hello", stream=True)).status == 200
        totals = gateway.fabric.totals()
        assert (totals["prompt_tokens"], totals["output_tokens"], totals["cached_tokens"]) == (413, 4, 412)

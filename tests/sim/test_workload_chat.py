"""Generated chat requests: published quantiles, and sharing that only prompts tell."""

from random import Random

import numpy as np
import pytest

from amf.sim.plan import Workload
from amf.sim.workload.chat import BLOCK_TOKENS, draw_requests
from amf.sim.workload.ideal import ideal_cached_tokens

REQUESTS = draw_requests(6_000, "m", 1.0, Random(1))


def test_lengths_are_near_the_published_quantiles():
    inputs = [request.calls[0].prompt.total_tokens for request in REQUESTS]
    outputs = [request.calls[0].output_tokens for request in REQUESTS]
    assert np.percentile(inputs, (50, 90, 99)) == pytest.approx((6_909, 27_367, 85_401), rel=0.25)
    assert np.percentile(outputs, (50, 90, 99)) == pytest.approx((350, 597, 1_120), rel=0.1)


def test_a_third_of_the_input_was_seen_before():
    """37 % in the recording, which is twice as long."""
    ideal = ideal_cached_tokens(Workload(name="chat", pipelines=REQUESTS))
    share = ideal / sum(request.calls[0].prompt.total_tokens for request in REQUESTS)
    assert 0.27 < share < 0.40


def test_each_request_is_a_pipeline_of_one_call_and_prompts_extend_each_other():
    assert all(len(request.calls) == 1 for request in REQUESTS)
    assert len({request.calls[0].prompt.namespace for request in REQUESTS}) == 1
    by_start = {}
    extended = 0
    for request in REQUESTS:
        runs = request.calls[0].prompt.runs
        (first, _), *rest = runs
        start = rest[0][0] if first == 0 and rest else first
        extended += start in by_start and by_start[start] < request.calls[0].prompt.blocks
        by_start[start] = request.calls[0].prompt.blocks
    assert 0.25 < extended / len(REQUESTS) < 0.40, "33 % of the recorded ones extend an earlier one"


def test_the_scale_is_one_of_lengths_and_draws_repeat():
    small = draw_requests(200, "m", 0.1, Random(1))
    assert small == draw_requests(200, "m", 0.1, Random(1)) != draw_requests(200, "m", 0.1, Random(2))
    mean = np.mean([request.calls[0].prompt.total_tokens for request in small])
    assert mean < 0.25 * np.mean([request.calls[0].prompt.total_tokens for request in REQUESTS[:200]]) + BLOCK_TOKENS

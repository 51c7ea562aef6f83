"""Laws of the sketch, against quantiles reckoned from all values."""

import json
from math import ceil, inf, nan
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amf.core.state.sketch import ERROR, MAX_BUCKETS, MEMORY, Sketch

values = st.lists(st.just(0.0) | st.floats(1e-3, 10.0) | st.integers(1, 5), min_size=1, max_size=60)
shares = st.floats(0.0, 1.0)


def sketch_of(observed) -> Sketch:
    sketch = Sketch()
    for value in observed:
        sketch.observe(value)
    return sketch


def exact(observed, q: float) -> float:
    """By nearest rank."""
    return sorted(observed)[max(0, ceil(q * len(observed)) - 1)]


@given(values, shares)
def test_a_quantile_is_within_the_stated_error(observed, q):
    assert sketch_of(observed).quantile(q) == pytest.approx(exact(observed, q), rel=ERROR * 1.000001, abs=1e-6)


@pytest.mark.parametrize("draw", ["lognormvariate", "paretovariate", "uniform"])
def test_so_it_is_on_two_thousand_values_of_heavy_and_light_tails(draw: str):
    arguments = {"lognormvariate": (3.0, 1.2), "paretovariate": (1.1,), "uniform": (0.0, 500.0)}[draw]
    random = Random(7)
    observed = [getattr(random, draw)(*arguments) for _ in range(int(MEMORY))]
    sketch = sketch_of(observed)
    assert len(sketch.to_dict()["buckets"]) <= MAX_BUCKETS
    for q in (0.01, 0.1, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0):
        assert sketch.quantile(q) == pytest.approx(exact(observed, q), rel=ERROR * 1.000001), q


@given(values, shares, shares)
def test_a_quantile_grows_with_its_share(observed, one, other):
    sketch = sketch_of(observed)
    low, high = sorted((one, other))
    assert sketch.quantile(low) <= sketch.quantile(high)


@given(values, shares)
def test_a_curve_gives_the_same_quantiles(observed, q):
    sketch = sketch_of(observed)
    assert sketch.curve()(q) == sketch.quantile(q)


def test_a_curve_of_nothing_is_0():
    assert Sketch().curve()(0.5) == Sketch().quantile(0.5) == 0.0


@given(st.lists(st.floats(0.0, 1e6), min_size=40, max_size=120), st.integers(1, 40))
def test_to_ask_in_between_changes_nothing(observed, every):
    asked, left = Sketch(), Sketch()
    for number, value in enumerate(observed * 30):
        asked.observe(value)
        left.observe(value)
        if number % every == 0:
            asked.quantile(0.5)
    assert asked.to_dict() == left.to_dict()


@given(values, values)
def test_to_merge_is_to_observe_both(one, other):
    merged, both = sketch_of(one), sketch_of([*one, *other])
    merged.merge(sketch_of(other))
    assert merged.count == both.count == len(one) + len(other)
    assert merged.mean == pytest.approx(both.mean)
    assert merged.to_dict()["buckets"] == both.to_dict()["buckets"]


@given(values, st.floats(0.1, 3_000.0))
def test_nothing_is_lost_on_the_way_through_json(observed, weight):
    sketch = Sketch()
    for value in observed:
        sketch.observe(value, weight)
    again = Sketch.from_dict(json.loads(json.dumps(sketch.to_dict())))
    assert again.to_dict() == sketch.to_dict()
    assert again.count == pytest.approx(sketch.count) and again.mean == pytest.approx(sketch.mean)


@given(st.lists(st.floats() | st.integers(-(10**30), 10**30), max_size=30), st.floats())
def test_no_number_can_break_it(observed, q):
    sketch = sketch_of(observed)
    assert sketch.count == len(observed)
    assert 0.0 <= sketch.quantile(q) <= 1.1e15 and 0.0 <= sketch.mean <= 1e15


def test_the_ends_of_its_range():
    assert Sketch().quantile(0.5) == Sketch().mean == Sketch().count == 0.0
    assert sketch_of([nan, -1.0, 0.0, 1e-9]).quantile(1.0) == 0.0
    assert sketch_of([inf, 1e300]).quantile(0.5) == pytest.approx(1e15, rel=0.0201)
    assert sketch_of([5.0, 7.0]).mean == 6.0, "the mean is exact"


def test_weights_count():
    sketch = Sketch()
    sketch.observe(1.0, 9.0)
    sketch.observe(100.0)
    assert sketch.count == 10.0 and sketch.mean == 10.9
    assert sketch.quantile(0.9) == pytest.approx(1.0, rel=0.0201)
    assert sketch.quantile(0.91) == pytest.approx(100.0, rel=0.0201)


def test_it_follows_drift_up_and_down_and_stays_bounded():
    random, sketch = Random(3), Sketch()
    for level in (1.0, 1_000.0, 1e6, 1e9, 1.0):
        for _ in range(14_000):
            sketch.observe(level * random.lognormvariate(0.0, 0.5))
            assert sketch.count <= MEMORY
        assert sketch.quantile(0.5) == pytest.approx(level, rel=0.1), level
        assert sketch.quantile(0.01) > level / 10, "nothing is left of the level before"
        assert sketch.mean == pytest.approx(level * 1.13, rel=0.1)


def test_a_sketch_of_too_wide_a_span_keeps_its_high_quantiles():
    observed = [1e-5 * 1.04**step for step in range(1_000)]
    sketch = sketch_of(observed)
    assert len(sketch.to_dict()["buckets"]) == MAX_BUCKETS and sketch.count == 1_000
    assert sketch.quantile(0.9) == pytest.approx(exact(observed, 0.9), rel=ERROR * 1.000001)
    assert sketch.quantile(0.1) > exact(observed, 0.1)

"""Laws of the cost model, over random models' worth of numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amf.core.cost import (
    break_even_s,
    decode_iteration_s,
    iteration_s,
    kv_bytes,
    model_from_config,
    prefill_s,
    worker_profile,
)
from amf.core.presets import MODEL_CONFIGS, gpu_preset, model_preset
from amf.core.types import WorkerProfile

PROFILES = {name: worker_profile(model_preset(name), gpu_preset("h200")) for name in MODEL_CONFIGS}

profiles = st.sampled_from(sorted(PROFILES)).map(PROFILES.__getitem__)
decoders = st.sampled_from(sorted(set(PROFILES) - {"bge-m3", "bge-reranker-v2-m3"})).map(PROFILES.__getitem__)
tokens = st.integers(0, 300_000)
few = st.integers(0, 20_000)


@given(profiles, tokens, tokens, few)
def test_prefill_grows_with_new_and_with_cached_tokens(
    profile: WorkerProfile, new: int, cached: int, more: int
) -> None:
    assert prefill_s(profile, new + more, cached) >= prefill_s(profile, new, cached)
    assert prefill_s(profile, new, cached + more) >= prefill_s(profile, new, cached)


@given(profiles, st.integers(1, 300_000), st.integers(1, 300_000), tokens)
def test_chunks_cost_the_whole_plus_one_overhead(profile: WorkerProfile, first: int, second: int, cached: int) -> None:
    chunked = prefill_s(profile, first, cached) + prefill_s(profile, second, cached + first)
    whole = prefill_s(profile, first + second, cached)
    assert chunked - profile.iteration_overhead_s == pytest.approx(whole, rel=1e-9)


@given(profiles, st.integers(1, 300_000), tokens)
def test_a_warm_prefix_never_costs(profile: WorkerProfile, new: int, cached: int) -> None:
    assert prefill_s(profile, new, cached) <= prefill_s(profile, new + cached, 0)


@given(profiles, st.lists(st.tuples(few, tokens), max_size=4), st.integers(0, 256), tokens, few)
def test_an_iteration_grows_with_each_of_its_parts(
    profile: WorkerProfile, prefill: list[tuple[int, int]], batch: int, kv: int, more: int
) -> None:
    base = iteration_s(profile, prefill, batch, kv)
    assert iteration_s(profile, [*prefill, (more, 0)], batch, kv) >= base
    assert iteration_s(profile, [*prefill, (1, more)], batch, kv) >= base
    assert iteration_s(profile, prefill, batch + 1, kv) >= base
    assert iteration_s(profile, prefill, batch, kv + more) >= base


@given(profiles, st.integers(1, 256), tokens)
def test_batching_saves_and_never_beats_physics(profile: WorkerProfile, batch: int, each: int) -> None:
    together = decode_iteration_s(profile, batch, batch * each)
    alone = decode_iteration_s(profile, 1, each)
    assert alone * (1 - 1e-9) <= together <= batch * alone * (1 + 1e-9)


@given(profiles, st.integers(1, 20_000), tokens)
def test_a_lone_prefill_is_one_iteration_unless_bytes_bound_it(profile: WorkerProfile, new: int, cached: int) -> None:
    assert iteration_s(profile, [(new, cached)], 0, 0) >= prefill_s(profile, new, cached) * (1 - 1e-9)


@given(st.sampled_from([1, 2, 4, 8, 16, 32]), st.integers(1, 100_000))
def test_kv_shrinks_by_the_ratio_of_heads(kv_heads: int, context: int) -> None:
    config = {**MODEL_CONFIGS["llama-3.1-8b"]}
    grouped = worker_profile(model_from_config({**config, "num_key_value_heads": kv_heads}, "gqa"), gpu_preset("h200"))
    full = worker_profile(model_from_config({**config, "num_key_value_heads": None}, "mha"), gpu_preset("h200"))
    assert kv_bytes(full, context) * kv_heads == kv_bytes(grouped, context) * 32


@given(decoders, st.integers(1, 300_000), few, st.integers(1, 5_000_000))
def test_break_even_grows_with_pool_and_kv_with_context(
    profile: WorkerProfile, context: int, more: int, pool: int
) -> None:
    assert break_even_s(profile, context, 2 * pool) == pytest.approx(2 * break_even_s(profile, context, pool))
    assert kv_bytes(profile, context + more) >= kv_bytes(profile, context) > 0

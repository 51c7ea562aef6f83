"""Which workers could read each other's KV memory, and why others could not."""

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amf.engines.family import KvTraits, families, kv_compatible

A = KvTraits(
    worker="a",
    model="llama",
    root="meta-llama/Llama-3.1-8B",
    weights="bf16",
    engine="vllm",
    version="0.32.0",
    kv_format="auto",
    block_tokens=16,
    tensor_parallel=1,
    hash_algorithm="sha256",
)


def other(**changes: object) -> KvTraits:
    return replace(A, worker="b", **changes)  # type: ignore[arg-type]


def test_equal_traits_are_exact() -> None:
    match = kv_compatible(A, other())
    assert (match.grade, match.reasons) == ("exact", ())


@pytest.mark.parametrize(
    ("changes", "grade", "reason"),
    [
        ({"root": "meta-llama/Llama-3.1-70B"}, "none", "other weights: Llama-3.1-8B, Llama-3.1-70B"),
        ({"root": "/adapters/sql", "model": "sql"}, "none", "other weights: Llama-3.1-8B, sql"),
        ({"root": None, "model": "qwen"}, "none", "other models: llama, qwen"),
        ({"weights": "fp8"}, "none", "formats of the weights, as configured: bf16, fp8"),
        ({"kv_format": "fp8"}, "partial", "KV formats: auto, fp8"),
        ({"block_tokens": 32}, "partial", "tokens in a block: 16, 32"),
        ({"tensor_parallel": 2}, "partial", "GPUs that a layer is split over, as configured: 1, 2"),
        ({"version": "0.28.0"}, "partial", "versions: 0.32.0, 0.28.0"),
        ({"hash_algorithm": "xxhash"}, "partial", "names of blocks by: sha256, xxhash"),
        ({"engine": "sglang", "version": "0.5.23"}, "partial", "engines: vllm, sglang"),
        ({"kv_format": None}, "unknown", "KV formats: not known of b"),
        ({"weights": None}, "unknown", "formats of the weights: not known of b"),
    ],
)
def test_one_difference_one_reason(changes: dict[str, object], grade: str, reason: str) -> None:
    match = kv_compatible(A, other(**changes))
    assert (match.grade, match.reasons) == (grade, (reason,))


def test_other_weights_leave_nothing_to_say_of_the_form() -> None:
    assert kv_compatible(A, other(root="x/y", block_tokens=32)).reasons == ("other weights: Llama-3.1-8B, y",)


def test_hosts_may_keep_the_same_weights_elsewhere_and_under_another_name() -> None:
    assert kv_compatible(A, other(root="/models/Llama-3.1-8B/", model="chat")).grade == "exact"
    assert kv_compatible(replace(A, root=None), other()).grade == "exact"  # by the served name


def test_an_unknown_hash_algorithm_keeps_nobody_apart() -> None:
    """Names can be learned from events; only known ones that differ stand in the way."""
    assert kv_compatible(A, other(hash_algorithm=None)).grade == "exact"


def test_families_and_why_they_are_apart() -> None:
    workers = [A, other(block_tokens=32), replace(A, worker="c"), other(root="x/y"), other(block_tokens=32)]
    workers = [replace(worker, worker=name) for worker, name in zip(workers, "abcde", strict=True)]
    found, apart = families(workers)
    assert [family.workers for family in found] == [("a", "c"), ("b", "e"), ("d",)]
    assert [(each.one, each.other, each.match.grade) for each in apart] == [
        ("a", "b", "partial"),
        ("a", "d", "none"),
        ("b", "d", "none"),
    ]


def test_who_would_fit_two_that_do_not_fit_each_other_joins_the_first() -> None:
    """By the name `b` fits both, but `a` and `c` were loaded from different places."""
    unnamed, elsewhere = replace(A, worker="b", root=None), replace(A, worker="c", root="x/y")
    found, apart = families([A, unnamed, elsewhere])
    assert [family.workers for family in found] == [("a", "b"), ("c",)]
    assert apart[0].match.reasons == ("other weights: Llama-3.1-8B, y",)


FEW: dict[str, st.SearchStrategy[object]] = {
    "model": st.sampled_from(["llama", "qwen"]),
    "root": st.sampled_from([None, "m/llama", "/here/llama", "m/qwen"]),
    "weights": st.sampled_from([None, "bf16", "fp8"]),
    "engine": st.sampled_from([None, "vllm", "sglang"]),
    "version": st.sampled_from([None, "1", "2"]),
    "kv_format": st.sampled_from([None, "auto", "fp8"]),
    "block_tokens": st.sampled_from([None, 16, 32]),
    "tensor_parallel": st.sampled_from([None, 1, 2]),
    "hash_algorithm": st.sampled_from([None, "sha256", "xxhash"]),
}
TRAITS = st.builds(KvTraits, worker=st.just("w"), **FEW)


def test_the_laws_draw_every_trait() -> None:
    assert {field.name for field in fields(KvTraits)} == {"worker", *FEW}


@given(TRAITS, TRAITS)
def test_it_is_symmetric(a: KvTraits, b: KvTraits) -> None:
    there, back = kv_compatible(a, b), kv_compatible(b, a)
    assert there.grade == back.grade and len(there.reasons) == len(back.reasons)
    assert (there.grade == "exact") == (not there.reasons)


@given(st.lists(TRAITS, max_size=8))
def test_families_part_the_workers_and_hold_only_who_match(drawn: list[KvTraits]) -> None:
    workers = {f"w{i}": replace(traits, worker=f"w{i}") for i, traits in enumerate(drawn)}
    found, apart = families(workers.values())
    assert sorted(name for family in found for name in family.workers) == sorted(workers)
    for family in found:
        members = [workers[name] for name in family.workers]
        assert all(kv_compatible(a, b).grade == "exact" for a in members for b in members if a is not b)
    assert len(apart) == len(found) * (len(found) - 1) // 2
    assert all(each.match.reasons for each in apart)

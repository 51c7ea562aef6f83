"""The physics against published sizes, hand-worked figures and malformed configs."""

from dataclasses import replace

import pytest

from amf.core.cost import (
    Config,
    Deployment,
    break_even_s,
    decode_iteration_s,
    decode_s,
    iteration_s,
    kv_bytes,
    kv_capacity_tokens,
    model_from_config,
    prefill_s,
    transfer_s,
    weight_bytes,
    worker_profile,
)
from amf.core.presets import GPUS, MODEL_CONFIGS, gpu_preset, model_preset
from amf.core.types import WorkerProfile

BF16 = Deployment(weights="bf16", kv="bf16")

DEEPSEEK_V2_LITE: Config = {
    "model_type": "deepseek_v2",
    "hidden_size": 2048,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "intermediate_size": 10_944,
    "moe_intermediate_size": 1408,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "vocab_size": 102_400,
    "tie_word_embeddings": False,
}
LLAMA_1_7B: Config = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11_008,
    "vocab_size": 32_000,
    "tie_word_embeddings": False,
}
QWEN1_5_MOE: Config = {
    "model_type": "qwen2_moe",
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "intermediate_size": 5632,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "decoder_sparse_step": 1,
    "use_sliding_window": False,
    "sliding_window": 32_768,
    "max_window_layers": 21,
    "vocab_size": 151_936,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module")
def llama_70b() -> WorkerProfile:
    return worker_profile(model_preset("llama-3.3-70b"), gpu_preset("h200"))


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("llama-3.3-70b", 70.6e9, 70.6e9),
        ("llama-3.1-8b", 8.03e9, 8.03e9),
        ("llama-3.2-3b", 3.21e9, 3.21e9),
        ("qwen3-32b", 32.8e9, 32.8e9),
        ("qwen3-8b", 8.19e9, 8.19e9),
        ("qwen3-30b-a3b", 30.5e9, 3.3e9),
        ("mixtral-8x7b", 46.7e9, 12.9e9),
        ("deepseek-v3", 671e9, 37e9),
        ("gemma-3-27b", 27.0e9, 27.0e9),
    ],
)
def test_parameter_counts_agree_with_the_published_ones(name: str, total: float, active: float) -> None:
    model = model_preset(name)
    assert model.total_params == pytest.approx(total, rel=0.03)
    assert model.active_params == pytest.approx(active, rel=0.03)


def test_other_architectures_agree_with_their_published_sizes() -> None:
    lite = model_from_config(DEEPSEEK_V2_LITE, "deepseek-v2-lite")
    assert lite.total_params == pytest.approx(15.7e9, rel=0.03)
    assert lite.active_params == pytest.approx(2.66e9, rel=0.03)  # 2.4 B published, without one embedding table
    assert model_from_config(LLAMA_1_7B, "llama-7b").total_params == pytest.approx(6.74e9, rel=0.03)
    qwen = model_from_config(QWEN1_5_MOE, "qwen1.5-moe-a2.7b")
    assert qwen.total_params == pytest.approx(14.3e9, rel=0.03)
    assert qwen.active_params == pytest.approx(2.69e9, rel=0.03)
    gpt_oss = model_preset("gpt-oss-20b")
    assert gpt_oss.total_params == pytest.approx(20.9e9, rel=0.03)
    assert gpt_oss.active_params - gpt_oss.vocab * gpt_oss.hidden == pytest.approx(3.6e9, rel=0.03)
    bge = model_preset("bge-m3")
    assert bge.total_params == pytest.approx(568e6, rel=0.03)
    assert bge.active_params == pytest.approx(303e6, rel=0.03)  # a lookup multiplies nothing


@pytest.mark.parametrize(
    ("name", "deployment", "kib"),
    [
        ("llama-3.3-70b", Deployment(), 160),
        ("llama-3.3-70b", BF16, 320),
        ("llama-3.1-8b", BF16, 128),
        ("qwen3-32b", BF16, 256),
        ("deepseek-v3", BF16, 61 * 576 * 2 / 1024),
    ],
)
def test_kv_bytes_of_a_token(name: str, deployment: Deployment, kib: float) -> None:
    profile = worker_profile(model_preset(name), gpu_preset("h200"), deployment)
    assert kv_bytes(profile, 1000) == pytest.approx(1000 * kib * 1024)


def test_a_cold_long_prompt_and_a_lone_decode_on_70b(llama_70b: WorkerProfile) -> None:
    assert prefill_s(llama_70b, 100_000, 0) == pytest.approx(27.5, rel=0.02)
    assert decode_iteration_s(llama_70b, 1, 100_000) == pytest.approx(0.0255, rel=0.03)
    assert prefill_s(llama_70b, 700, 99_300) < 0.4, "a warm turn costs a small part of a cold one"


def test_prefill_flops_of_the_70b() -> None:
    profile = worker_profile(
        model_preset("llama-3.3-70b"), gpu_preset("h200"), Deployment(mfu=1.0, iteration_overhead_s=0.0)
    )
    flops = [prefill_s(profile, 1024 * k, 0) * profile.flops_per_s for k in (2, 32, 256)]
    assert flops == pytest.approx([295e12, 6.0e15, 127e15], rel=0.03)


def test_pool_and_break_even_of_the_70b(llama_70b: WorkerProfile) -> None:
    assert kv_capacity_tokens(model_preset("llama-3.3-70b"), gpu_preset("h200")) == pytest.approx(344_000, rel=0.01)
    wide = Deployment(tensor_parallel=8)
    pool = kv_capacity_tokens(model_preset("llama-3.3-70b"), gpu_preset("h200"), wide)
    assert pool == pytest.approx(5.77e6, rel=0.01)
    profile = worker_profile(model_preset("llama-3.3-70b"), gpu_preset("h200"), wide)
    holds = [break_even_s(profile, context, pool) for context in (10_000, 30_000, 100_000, 200_000)]
    assert holds == pytest.approx([112, 131, 198, 294], rel=0.02)
    assert break_even_s(llama_70b, 100_000, 500_000) == pytest.approx(137.5, rel=0.01)
    assert break_even_s(llama_70b, 0, 500_000) == 0


def test_tensor_parallel_scales_rates_and_replicates_what_cannot_be_split() -> None:
    model, gpu = model_preset("llama-3.1-8b"), gpu_preset("h100")
    one, two, sixteen = (worker_profile(model, gpu, Deployment(tensor_parallel=n)) for n in (1, 2, 16))
    assert two.flops_per_s == 2 * one.flops_per_s
    assert two.bandwidth_bytes_per_s == 2 * one.bandwidth_bytes_per_s
    assert two.dollars_per_hour == 2 * one.dollars_per_hour
    assert two.kv_bytes_per_token == one.kv_bytes_per_token
    assert sixteen.kv_bytes_per_token == 2 * one.kv_bytes_per_token, "8 KV heads on 16 ranks"
    deepseek = model_preset("deepseek-v3")
    mla_one, mla_two = (worker_profile(deepseek, gpu, Deployment(tensor_parallel=n)) for n in (1, 2))
    assert mla_two.kv_bytes_per_token == 2 * mla_one.kv_bytes_per_token


def test_fp8_needs_the_hardware_for_its_speed() -> None:
    model = model_preset("llama-3.1-8b")
    assert worker_profile(model, gpu_preset("h100")).flops_per_s == 1979e12 * 0.5
    assert worker_profile(model, gpu_preset("h100"), BF16).flops_per_s == 989e12 * 0.5
    assert worker_profile(model, gpu_preset("a100")).flops_per_s == 312e12 * 0.5


def test_experts_are_read_as_far_as_the_batch_reaches() -> None:
    profile = worker_profile(model_preset("mixtral-8x7b"), gpu_preset("h200"), Deployment(iteration_overhead_s=0.0))
    moved = [decode_iteration_s(profile, batch, 0) * profile.bandwidth_bytes_per_s for batch in (1, 2, 64)]
    dense, experts = profile.dense_weight_bytes, profile.expert_weight_bytes
    assert moved == pytest.approx([dense + experts / 4, dense + experts * 7 / 16, dense + experts], rel=1e-6)
    assert moved[0] == pytest.approx(model_preset("mixtral-8x7b").active_params)


def test_sliding_layers_stop_growing_at_their_window() -> None:
    gemma = model_preset("gemma-3-27b")
    assert (gemma.full_layers, gemma.window_layers, gemma.window_tokens) == (10, 52, 1024)
    profile = worker_profile(gemma, gpu_preset("h200"))
    per_layer = 2 * 16 * 128
    assert kv_bytes(profile, 1024) == 62 * per_layer * 1024
    assert kv_bytes(profile, 10_240) == per_layer * (10 * 10_240 + 52 * 1024)
    uncapped = replace(profile, window_tokens=10**9)
    assert prefill_s(profile, 1024, 0) == prefill_s(uncapped, 1024, 0)
    saved = prefill_s(uncapped, 1000, 9_000) - prefill_s(profile, 1000, 9_000)
    assert saved * profile.flops_per_s == pytest.approx(profile.window_attention_flops * 1000 * (9_500 - 1024))


@pytest.mark.parametrize(
    ("extra", "layers"),
    [
        ({"sliding_window": 4096}, (0, 32, 4096)),
        ({"sliding_window": None}, (32, 0, 0)),
        ({"sliding_window": 4096, "use_sliding_window": False}, (32, 0, 0)),
        ({"sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 28}, (28, 4, 4096)),
        ({"model_type": "gemma2", "sliding_window": 4096}, (16, 16, 4096)),
        ({"layer_types": ["sliding_attention", "full_attention"] * 16, "sliding_window": 128}, (16, 16, 128)),
        (
            {"layer_types": ["chunked_attention"] * 24 + ["full_attention"] * 8, "attention_chunk_size": 8192},
            (8, 24, 8192),
        ),
        ({"layer_types": ["linear_attention"] * 24 + ["full_attention"] * 8}, (8, 0, 0)),
    ],
)
def test_layer_kinds_are_read(extra: Config, layers: tuple[int, int, int]) -> None:
    model = model_from_config({**LLAMA_1_7B, **extra}, "m")
    assert (model.full_layers, model.window_layers, model.window_tokens) == layers


def test_missing_key_value_heads_mean_mha_and_multi_query_means_one() -> None:
    assert model_from_config(LLAMA_1_7B, "m").kv_heads == 32
    assert model_from_config({**LLAMA_1_7B, "multi_query": True}, "m").kv_heads == 1


def test_sparse_and_dense_layers_of_an_expert_model() -> None:
    base = model_from_config(QWEN1_5_MOE, "m")
    half = model_from_config({**QWEN1_5_MOE, "decoder_sparse_step": 2}, "m")
    assert half.expert_params == base.expert_params / 2
    fewer = model_from_config({**QWEN1_5_MOE, "mlp_only_layers": [0, 1]}, "m")
    assert fewer.expert_params == base.expert_params * 22 / 24
    assert model_preset("deepseek-v3").expert_params == 58 * 256 * 3 * 7168 * 2048


def test_text_config_and_class_defaults_are_found() -> None:
    small = {"hidden_size": 2560, "intermediate_size": 10_240, "num_hidden_layers": 34, "sliding_window": 1024}
    model = model_from_config({"text_config": {"model_type": "gemma3_text", **small}}, "gemma-3-4b")
    assert model.total_params == pytest.approx(3.88e9, rel=0.03)
    assert (model.heads, model.kv_heads, model.head_dim, model.full_layers) == (8, 4, 256, 5)
    text = {key: value for key, value in LLAMA_1_7B.items() if key != "tie_word_embeddings"}
    tied = {"tie_word_embeddings": True, "text_config": text}
    assert model_from_config(tied, "m").total_params == model_from_config(LLAMA_1_7B, "m").total_params - 32_000 * 4096


def test_an_encoder_has_no_kv_and_attends_both_ways() -> None:
    model, gpu = model_preset("bge-m3"), gpu_preset("l40s")
    profile = worker_profile(model, gpu, BF16)
    assert kv_bytes(profile, 8192) == 0
    assert profile.attention_flops == 2 * 4 * 24 * 1024
    assert kv_capacity_tokens(model, gpu, BF16) > 1_000_000
    assert 0 < prefill_s(profile, 512, 0) < 0.01


@pytest.mark.parametrize(
    "key", ["num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads", "intermediate_size"]
)
def test_a_missing_key_is_named(key: str) -> None:
    config = {name: value for name, value in LLAMA_1_7B.items() if name != key}
    with pytest.raises(ValueError, match=f"my-model: config.json has no '{key}'.*full config.json"):
        model_from_config(config, "my-model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": "4096"}, "'hidden_size'.*whole number"),
        ({"num_hidden_layers": True}, "'num_hidden_layers'.*whole number"),
        ({"num_attention_heads": -1}, "'num_attention_heads'.*whole number"),
        ({"vocab_size": 0}, "must all be positive"),
        ({"layer_types": "full_attention"}, "'layer_types'.*list"),
        ({"num_experts": 8}, "no 'num_experts_per_tok'"),
        ({"num_experts": 8, "num_experts_per_tok": 9}, "activates 9 of 8"),
        ({"kv_lora_rank": 512}, "no 'qk_rope_head_dim'"),
    ],
)
def test_a_wrong_value_is_named(change: Config, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_from_config({**LLAMA_1_7B, **change}, "m")


def test_weights_that_do_not_fit_name_the_parallelism_that_would() -> None:
    model, gpu = model_preset("deepseek-v3"), gpu_preset("h200")
    with pytest.raises(ValueError, match="tensor_parallel = 8"):
        kv_capacity_tokens(model, gpu)
    assert kv_capacity_tokens(model, gpu, Deployment(tensor_parallel=8)) > 0
    with pytest.raises(ValueError, match="leave no room"):
        kv_capacity_tokens(model, gpu, Deployment(tensor_parallel=4))
    with pytest.raises(ValueError, match="memory_fraction"):
        kv_capacity_tokens(model, gpu, memory_fraction=0.0)


def test_mxfp4_keeps_what_is_not_an_expert_in_bf16() -> None:
    size = weight_bytes(model_preset("gpt-oss-20b"), Deployment(weights="mxfp4"))
    assert size == pytest.approx(13.8e9, rel=0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "fp7"}, "weight format 'fp7'"),
        ({"kv": "int1"}, "KV format 'int1'"),
        ({"tensor_parallel": 0}, "tensor_parallel"),
        ({"mfu": 1.5}, "mfu"),
        ({"iteration_overhead_s": -1.0}, "iteration_overhead_s"),
    ],
)
def test_a_deployment_that_makes_no_sense_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Deployment(**options)  # type: ignore[arg-type]


def test_iteration_shares_the_weights_and_takes_the_longer_of_two_limits(llama_70b: WorkerProfile) -> None:
    alone = decode_iteration_s(llama_70b, 8, 80_000)
    assert iteration_s(llama_70b, (), 8, 80_000) == alone
    small = iteration_s(llama_70b, [(16, 0)], 8, 80_000)
    assert alone < small < alone + 1e-4, "a few prefill tokens ride along under the weight read"
    large = iteration_s(llama_70b, [(2048, 0)], 8, 80_000)
    assert large == pytest.approx(
        prefill_s(llama_70b, 2048, 0) + 8 * llama_70b.flops_per_token / llama_70b.flops_per_s, rel=0.01
    )
    assert iteration_s(llama_70b, (), 0, 0) == decode_iteration_s(llama_70b, 0, 0) == prefill_s(llama_70b, 0, 5) == 0


def test_decode_of_many_tokens_equals_its_iterations(llama_70b: WorkerProfile) -> None:
    stepped = sum(decode_iteration_s(llama_70b, 4, 40_000 + 4 * step) for step in range(200))
    assert decode_s(llama_70b, 200, 4, 40_000) == pytest.approx(stepped, rel=1e-9)
    assert decode_s(llama_70b, 0, 4, 40_000) == 0


def test_transfer() -> None:
    assert transfer_s(16e9, 50e9) == pytest.approx(0.32)
    assert transfer_s(1.0, 0.0) == float("inf")


def test_presets_are_complete_and_unknown_names_show_the_nearest_first() -> None:
    assert set(GPUS) == {"h100", "h200", "b200", "a100", "l40s"}
    for name in MODEL_CONFIGS:
        assert worker_profile(model_preset(name), gpu_preset("b200")).flops_per_token > 0
    with pytest.raises(ValueError, match="unknown GPU preset 'h300': known: h100, h200, "):
        gpu_preset("h300")
    with pytest.raises(ValueError, match=r"unknown model preset 'Qwen3-7b': known: qwen3-.*config\.json"):
        model_preset("Qwen3-7b")

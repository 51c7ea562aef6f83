"""Accelerators and models by name. Facts from data sheets and from the models' published `config.json`.

Models are kept as the keys of their config that matter here and read like any other config, so a preset and the file it
was taken from give the same `ModelSpec`.
"""

from collections.abc import Mapping
from typing import Final

from amf.core.cost import Config, GpuSpec, ModelSpec, model_from_config

# dollars_per_hour: an assumption, about the on-demand list price of one such GPU at specialised clouds. Replace it.
GPUS: Final[Mapping[str, GpuSpec]] = {
    gpu.name: gpu
    for gpu in (
        GpuSpec(
            name="h100",
            bf16_flops_per_s=989e12,
            fp8_flops_per_s=1979e12,
            bandwidth_bytes_per_s=3.35e12,
            memory_bytes=80e9,
            dollars_per_hour=3.0,
        ),
        GpuSpec(
            name="h200",
            bf16_flops_per_s=989e12,
            fp8_flops_per_s=1979e12,
            bandwidth_bytes_per_s=4.8e12,
            memory_bytes=141e9,
            dollars_per_hour=3.8,
        ),
        GpuSpec(
            name="b200",
            bf16_flops_per_s=2250e12,
            fp8_flops_per_s=4500e12,
            bandwidth_bytes_per_s=8e12,
            memory_bytes=180e9,
            dollars_per_hour=6.0,
        ),
        GpuSpec(
            name="a100",
            bf16_flops_per_s=312e12,
            fp8_flops_per_s=0.0,
            bandwidth_bytes_per_s=2.039e12,
            memory_bytes=80e9,
            dollars_per_hour=1.8,
        ),
        GpuSpec(
            name="l40s",
            bf16_flops_per_s=362e12,
            fp8_flops_per_s=733e12,
            bandwidth_bytes_per_s=0.864e12,
            memory_bytes=48e9,
            dollars_per_hour=0.9,
        ),
    )
}

_BGE_M3: Final[Config] = {
    "model_type": "xlm-roberta",
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "vocab_size": 250_002,
    "max_position_embeddings": 8194,
}

MODEL_CONFIGS: Final[Mapping[str, Config]] = {
    "llama-3.3-70b": {
        "model_type": "llama",
        "hidden_size": 8192,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 28_672,
        "vocab_size": 128_256,
        "tie_word_embeddings": False,
    },
    "llama-3.1-8b": {
        "model_type": "llama",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14_336,
        "vocab_size": 128_256,
        "tie_word_embeddings": False,
    },
    "llama-3.2-3b": {
        "model_type": "llama",
        "hidden_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 8192,
        "vocab_size": 128_256,
        "tie_word_embeddings": True,
    },
    "qwen3-32b": {
        "model_type": "qwen3",
        "hidden_size": 5120,
        "num_hidden_layers": 64,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 25_600,
        "vocab_size": 151_936,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
    },
    "qwen3-8b": {
        "model_type": "qwen3",
        "hidden_size": 4096,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 12_288,
        "vocab_size": 151_936,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
    },
    "qwen3-30b-a3b": {
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "decoder_sparse_step": 1,
        "mlp_only_layers": (),
        "vocab_size": 151_936,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
    },
    "mixtral-8x7b": {
        "model_type": "mixtral",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14_336,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "sliding_window": None,
        "vocab_size": 32_000,
        "tie_word_embeddings": False,
    },
    "deepseek-v3": {
        "model_type": "deepseek_v3",
        "hidden_size": 7168,
        "num_hidden_layers": 61,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "intermediate_size": 18_432,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "first_k_dense_replace": 3,
        "moe_layer_freq": 1,
        "vocab_size": 129_280,
        "tie_word_embeddings": False,
    },
    "gpt-oss-20b": {
        "model_type": "gpt_oss",
        "hidden_size": 2880,
        "num_hidden_layers": 24,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "intermediate_size": 2880,
        "num_local_experts": 32,
        "num_experts_per_tok": 4,
        "sliding_window": 128,
        "layer_types": ("sliding_attention", "full_attention") * 12,
        "vocab_size": 201_088,
        "tie_word_embeddings": False,
    },
    "gemma-3-27b": {
        "model_type": "gemma3",
        "text_config": {
            "model_type": "gemma3_text",
            "hidden_size": 5376,
            "num_hidden_layers": 62,
            "num_attention_heads": 32,
            "num_key_value_heads": 16,
            "head_dim": 128,
            "intermediate_size": 21_504,
            "sliding_window": 1024,
        },
    },
    "bge-m3": _BGE_M3,
    "bge-reranker-v2-m3": _BGE_M3,
}


def gpu_preset(name: str) -> GpuSpec:
    """The accelerator of this name. Raises ValueError listing the known names."""
    if name not in GPUS:
        raise ValueError(f"unknown GPU preset {name!r}: {_known(name, GPUS)}")
    return GPUS[name]


def model_preset(name: str) -> ModelSpec:
    """The model of this name. Raises ValueError listing the known names."""
    if name not in MODEL_CONFIGS:
        raise ValueError(
            f"unknown model preset {name!r}: {_known(name, MODEL_CONFIGS)}; or give the path of a config.json"
        )
    return model_from_config(MODEL_CONFIGS[name], name)


def _known(name: str, presets: Mapping[str, object]) -> str:
    """The known names, that with the longest beginning in common first."""
    return "known: " + ", ".join(sorted(presets, key=lambda known: (-_common(name.lower(), known), known)))


def _common(a: str, b: str) -> int:
    return next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))

"""Seconds and bytes from tokens: the physics every price rests on.

Prefill of n tokens after c cached ones costs 2 P n + 4 L d (n c + n^2 / 2) FLOPs: two per active parameter and token,
and four per layer, attention width and causal (query, key) pair. A sliding-window layer counts at most its window per
query. One engine iteration takes the longer of computing its FLOPs and moving its bytes (weights once, experts as far
as the batch reaches, and the keys and values that are read), plus a constant overhead. Roofline numbers, to be
corrected online by what each worker is seen to do; so no constant here has to be exact.

The functions from `prefill_s` on run for every candidate worker of every decision: no allocation, no validation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf
from typing import Final

from amf.core.model import Config, ModelSpec, model_from_config
from amf.core.types import WorkerProfile

__all__ = [
    "FULL_BATCH",
    "Config",
    "Deployment",
    "GpuSpec",
    "ModelSpec",
    "break_even_s",
    "decode_iteration_s",
    "decode_s",
    "decode_share_s",
    "full_batch",
    "iteration_s",
    "kv_bytes",
    "kv_capacity_tokens",
    "model_from_config",
    "prefill_s",
    "transfer_s",
    "weight_bytes",
    "worker_profile",
]

# Bytes per parameter outside and inside routed experts. 4-bit formats include their scales (groups of 32 or 128).
_WEIGHT_BYTES: Final = {
    "bf16": (2.0, 2.0),
    "fp16": (2.0, 2.0),
    "fp8": (1.0, 1.0),
    "int4": (0.53, 0.53),
    "mxfp4": (2.0, 0.53),
}
_KV_BYTES: Final = {"bf16": 2, "fp16": 2, "fp8": 1}
FULL_BATCH: Final = 64  # sequences at which decoding is taken as saturated
# A token in flight has one hidden vector and one MLP row (4 x hidden), at 2 bytes.
_ACTIVATION_BYTES_PER_HIDDEN: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSpec:
    """One accelerator: dense peaks (no structured sparsity), HBM. `fp8_flops_per_s` = 0: no 8-bit matrix units."""

    name: str
    bf16_flops_per_s: float
    fp8_flops_per_s: float
    bandwidth_bytes_per_s: float
    memory_bytes: float
    dollars_per_hour: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """How a model is served on a worker. `mfu` and `bandwidth_utilisation` are the attained shares of the peaks.
    `context_tokens` is the context length at which sliding-window layers are charged when a pool is sized in tokens.
    Raises ValueError for an unknown number format or a value out of range."""

    tensor_parallel: int = 1
    weights: str = "fp8"
    kv: str = "fp8"
    mfu: float = 0.5
    bandwidth_utilisation: float = 0.8
    iteration_overhead_s: float = 0.003
    context_tokens: int = 32_768

    def __post_init__(self) -> None:
        if self.weights not in _WEIGHT_BYTES:
            raise ValueError(f"unknown weight format {self.weights!r}; known: {', '.join(_WEIGHT_BYTES)}")
        if self.kv not in _KV_BYTES:
            raise ValueError(f"unknown KV format {self.kv!r}; known: {', '.join(_KV_BYTES)}")
        if self.tensor_parallel < 1 or self.context_tokens < 1:
            raise ValueError("tensor_parallel and context_tokens must be at least 1")
        if not (0 < self.mfu <= 1 and 0 < self.bandwidth_utilisation <= 1):
            raise ValueError("mfu and bandwidth_utilisation must lie in (0, 1]")
        if self.iteration_overhead_s < 0:
            raise ValueError("iteration_overhead_s must not be negative")


_DEFAULT: Final = Deployment()


def worker_profile(model: ModelSpec, gpu: GpuSpec, deployment: Deployment = _DEFAULT) -> WorkerProfile:
    """The starting belief about a worker of `deployment.tensor_parallel` such GPUs.

    FP8 weights compute at the 8-bit peak where the GPU has one, everything else at the BF16 peak. KV heads that cannot
    be split further are replicated on every rank, and so is MLA's latent. An encoder attends in both directions, which
    costs twice the causal pairs, and has no KV.
    """
    ranks = deployment.tensor_parallel
    peak = gpu.fp8_flops_per_s if deployment.weights == "fp8" and gpu.fp8_flops_per_s else gpu.bf16_flops_per_s
    pair_flops = 2 * model.heads * (model.head_dim + model.value_head_dim) * (2 if model.encoder else 1)
    layer_bytes = _layer_kv_bytes(model, deployment)
    dense_bytes, expert_bytes = _weights(model, deployment)
    return WorkerProfile(
        flops_per_token=2 * model.active_params,
        attention_flops=float(model.full_layers * pair_flops),
        window_attention_flops=float(model.window_layers * pair_flops),
        window_tokens=model.window_tokens,
        flops_per_s=peak * deployment.mfu * ranks,
        bandwidth_bytes_per_s=gpu.bandwidth_bytes_per_s * deployment.bandwidth_utilisation * ranks,
        dense_weight_bytes=dense_bytes,
        expert_weight_bytes=expert_bytes,
        expert_share=model.active_experts / model.experts if model.experts else 0.0,
        kv_bytes_per_token=model.full_layers * layer_bytes,
        window_kv_bytes_per_token=model.window_layers * layer_bytes,
        iteration_overhead_s=deployment.iteration_overhead_s,
        dollars_per_hour=gpu.dollars_per_hour * ranks,
    )


def weight_bytes(model: ModelSpec, deployment: Deployment = _DEFAULT) -> float:
    """Bytes of all weights, over all ranks together."""
    return sum(_weights(model, deployment))


def kv_capacity_tokens(
    model: ModelSpec, gpu: GpuSpec, deployment: Deployment = _DEFAULT, memory_fraction: float = 0.9
) -> int:
    """Tokens of KV that fit beside the weights in `memory_fraction` of the worker's memory.

    Sliding-window layers are charged as for sequences of `deployment.context_tokens`. For a model that caches nothing:
    tokens in flight whose activations fit. Raises ValueError, naming the tensor_parallel that would do, if the weights
    leave no room, and for a fraction outside (0, 1].
    """
    if not 0 < memory_fraction <= 1:
        raise ValueError(f"memory_fraction must lie in (0, 1], not {memory_fraction}")
    weights, ranks = weight_bytes(model, deployment), deployment.tensor_parallel
    per_gpu = gpu.memory_bytes * memory_fraction
    window_share = min(1.0, model.window_tokens / deployment.context_tokens)
    per_token = _layer_kv_bytes(model, deployment) * (model.full_layers + model.window_layers * window_share)
    per_token = per_token or float(_ACTIVATION_BYTES_PER_HIDDEN * model.hidden)
    free = per_gpu * ranks - weights
    if free >= per_token:
        return int(free / per_token)
    enough = ranks
    while per_gpu * enough - weights < per_token:
        enough *= 2
    raise ValueError(
        f"{model.name}: {weights / 1e9:.1f} GB of {deployment.weights} weights leave no room for KV in "
        f"{per_gpu * ranks / 1e9:.1f} GB ({ranks} x {gpu.name}, {memory_fraction:.0%}): set tensor_parallel = {enough}"
    )


def _layer_kv_bytes(model: ModelSpec, deployment: Deployment) -> float:
    """Bytes one token takes in one layer that caches, over all ranks together."""
    ranks, width = deployment.tensor_parallel, _KV_BYTES[deployment.kv]
    if model.encoder:
        return 0.0
    if model.latent_dim:
        return float(model.latent_dim * width * ranks)
    return float(ceil(model.kv_heads / ranks) * ranks * (model.head_dim + model.value_head_dim) * width)


def _weights(model: ModelSpec, deployment: Deployment) -> tuple[float, float]:
    dense_width, expert_width = _WEIGHT_BYTES[deployment.weights]
    return (model.total_params - model.expert_params) * dense_width, model.expert_params * expert_width


def prefill_s(profile: WorkerProfile, new_tokens: int, cached_tokens: int) -> float:
    """Seconds to prefill `new_tokens` after `cached_tokens`, compute-bound, in one iteration; 0 if nothing is new."""
    if new_tokens <= 0:
        return 0.0
    if profile.window_attention_flops:
        flops = _prefill_flops(profile, new_tokens, cached_tokens)
    else:  # the same, without a call: workers are priced by the dozen
        flops = new_tokens * (profile.flops_per_token + profile.attention_flops * (cached_tokens + new_tokens / 2))
    return flops / profile.flops_per_s + profile.iteration_overhead_s


def iteration_s(
    profile: WorkerProfile, prefill: Sequence[tuple[int, int]], decode_batch: int, decode_kv_tokens: int
) -> float:
    """Seconds of one mixed iteration: prefill chunks (new, cached) and one token for each of `decode_batch` sequences
    that hold `decode_kv_tokens` together. 0 if there is nothing to do."""
    tokens, full_kv = decode_batch, float(decode_kv_tokens)
    window_kv = _window_kv(profile, decode_batch, full_kv)
    flops = _decode_flops(profile, tokens, full_kv, window_kv)
    for new_tokens, cached_tokens in prefill:
        tokens += new_tokens
        flops += _prefill_flops(profile, new_tokens, cached_tokens)
        full_kv += new_tokens + cached_tokens
        window_kv += new_tokens + min(cached_tokens, profile.window_tokens)
    if tokens <= 0:
        return 0.0
    read_bytes = profile.kv_bytes_per_token * full_kv + profile.window_kv_bytes_per_token * window_kv
    return _roofline_s(profile, tokens, flops, read_bytes)


def decode_iteration_s(profile: WorkerProfile, batch: int, kv_tokens: float) -> float:
    """Seconds of one iteration that gives one token to each of `batch` sequences holding `kv_tokens` together."""
    if batch <= 0:
        return 0.0
    window_kv = _window_kv(profile, batch, kv_tokens)
    flops = _decode_flops(profile, batch, kv_tokens, window_kv)
    read_bytes = profile.kv_bytes_per_token * kv_tokens + profile.window_kv_bytes_per_token * window_kv
    return _roofline_s(profile, batch, flops, read_bytes)


def decode_s(profile: WorkerProfile, output_tokens: int, batch: int, kv_tokens: float) -> float:
    """Seconds for `output_tokens` iterations of a batch that stays together and holds `kv_tokens` at the start. Each
    iteration adds a token per sequence, so the middle one stands for all."""
    if output_tokens <= 0:
        return 0.0
    return output_tokens * decode_iteration_s(profile, batch, kv_tokens + batch * (output_tokens - 1) / 2)


def decode_share_s(profile: WorkerProfile, prompt_tokens: int, output_tokens: int, batch: int) -> float:
    """Worker-seconds of one sequence's decoding in a batch of `batch` like it: its share of the iterations."""
    return decode_s(profile, output_tokens, batch, batch * prompt_tokens) / batch


def full_batch(max_running: int, kv_tokens: int, context_tokens: int) -> int:
    """Sequences of `context_tokens` (above 0) that a busy worker decodes together: at most FULL_BATCH, at least 1."""
    return max(1, min(FULL_BATCH, max_running, kv_tokens // context_tokens))


def kv_bytes(profile: WorkerProfile, tokens: int) -> float:
    """Bytes of KV that one sequence of `tokens` holds on the worker."""
    in_window = min(tokens, profile.window_tokens)
    return profile.kv_bytes_per_token * tokens + profile.window_kv_bytes_per_token * in_window


def transfer_s(size_bytes: float, bandwidth_bytes_per_s: float) -> float:
    """Seconds to move bytes over a link. A link without bandwidth never delivers: infinity."""
    return size_bytes / bandwidth_bytes_per_s if bandwidth_bytes_per_s > 0 else inf


def break_even_s(profile: WorkerProfile, context_tokens: int, pool_tokens: int) -> float:
    """How long an idle context is worth its memory: holding c of C pool tokens for t costs t c / C worker seconds and
    recomputing them costs prefill(c), which break even at t = prefill(c) C / c. 0 for an empty context."""
    if context_tokens <= 0:
        return 0.0
    return prefill_s(profile, context_tokens, 0) * pool_tokens / context_tokens


def _prefill_flops(profile: WorkerProfile, new: int, cached: int) -> float:
    flops = new * (profile.flops_per_token + profile.attention_flops * (cached + new / 2))
    if profile.window_attention_flops:
        growing = min(new, max(0, profile.window_tokens - cached))
        pairs = growing * (cached + growing / 2) + (new - growing) * profile.window_tokens
        flops += profile.window_attention_flops * pairs
    return flops


def _decode_flops(profile: WorkerProfile, batch: int, full_kv: float, window_kv: float) -> float:
    attention = profile.attention_flops * full_kv + profile.window_attention_flops * window_kv
    return profile.flops_per_token * batch + attention


def _window_kv(profile: WorkerProfile, batch: int, kv_tokens: float) -> float:
    """KV that sliding-window layers read for a decode batch, its sequences taken as equally long."""
    return min(kv_tokens, batch * profile.window_tokens)


def _roofline_s(profile: WorkerProfile, tokens: int, flops: float, kv_read_bytes: float) -> float:
    """A batch of t tokens reaches 1 - (1 - share)^t of the experts, each token choosing independently."""
    weights = profile.dense_weight_bytes
    if profile.expert_weight_bytes:
        weights += profile.expert_weight_bytes * (1 - (1 - profile.expert_share) ** tokens)
    move_s = (weights + kv_read_bytes) / profile.bandwidth_bytes_per_s
    return max(move_s, flops / profile.flops_per_s) + profile.iteration_overhead_s

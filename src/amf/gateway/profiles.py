"""What to believe of a worker before it has been seen at work: a model preset by name, a GPU, a KV size."""

import re
from urllib.parse import urlsplit

from amf.config import ConfigError, WorkerConfig
from amf.core.cost import Deployment, GpuSpec, ModelSpec, kv_capacity_tokens, worker_profile
from amf.core.presets import MODEL_CONFIGS, gpu_preset, model_preset
from amf.core.types import Worker
from amf.engines.engine import EngineInfo
from amf.engines.options import EngineLimits, EngineOptions

DEFAULT_PRESET = "llama-3.1-8b"  # an 8B dense model; what the worker is seen to do corrects it
_FALLBACK_KV_TOKENS = 100_000
DEFAULT_BLOCK_TOKENS = 16
_DEFAULT_MAX_RUNNING = 256


def name_of(config: WorkerConfig) -> str:
    """What it is called here."""
    return config.name or urlsplit(config.url).netloc or config.url


def options_of(config: WorkerConfig, limits: EngineLimits) -> EngineOptions:
    """How its adapter is to be made."""
    return EngineOptions(
        kind=config.engine,
        priority=config.priority,
        api_key=config.api_key,
        kv_events_endpoint=config.kv_events_endpoint,
        kv_replay_endpoint=config.kv_replay_endpoint,
        limits=limits,
    )


def pool_of(config: WorkerConfig, name: str, info: EngineInfo) -> str:
    """The model it serves for us. Raises ConfigError if it is configured for one that it does not serve."""
    if config.model is not None and config.model not in info.models:
        raise ConfigError(f"worker {name} does not serve `{config.model}` but {', '.join(info.models)}")
    return config.model or info.models[0]


def check_assumptions(config: WorkerConfig) -> None:
    """Raises ConfigError for an unknown preset, GPU or number format, before any worker is asked."""
    _assumed(config, config.preset or DEFAULT_PRESET)


def sees_events(info: EngineInfo, *, exact: bool) -> bool:
    """Whether the engine's KV events tell what became of our prompts: their keys are token hashes (`exact`), or the events
    name the call that stored a block."""
    return info.capabilities.kv_events and (exact or info.capabilities.attributed_events)


def worker_of(config: WorkerConfig, name: str, info: EngineInfo, *, exact: bool) -> Worker:
    """The worker as configured and probed. `exact`: see `sees_events`. Raises ConfigError for unknown presets, formats or a
    model it does not serve."""
    pool = pool_of(config, name, info)
    model, gpu, deployment = _assumed(config, config.preset or _preset_for(pool))
    profile = worker_profile(model, gpu, deployment)
    kv_tokens = config.kv_tokens or info.kv_tokens
    if kv_tokens is None:
        try:
            kv_tokens = kv_capacity_tokens(model, gpu, deployment)
        except ValueError:
            kv_tokens = _FALLBACK_KV_TOKENS  # it runs, so it fits: the assumed hardware is not what it runs on
    return Worker(
        name=name,
        pool=pool,
        profile=profile,
        kv_tokens=kv_tokens,
        block_tokens=config.block_tokens or info.block_tokens or DEFAULT_BLOCK_TOKENS,
        max_running=config.max_running or info.max_running or _DEFAULT_MAX_RUNNING,
        dram_tokens=config.dram_tokens,
        restore_bytes_per_s=config.dram_bytes_per_s,
        has_kv_events=sees_events(info, exact=exact),
        has_priority=info.capabilities.priority != "none",
    )


def _assumed(config: WorkerConfig, preset: str) -> tuple[ModelSpec, GpuSpec, Deployment]:
    try:
        deployment = Deployment(tensor_parallel=config.tensor_parallel, weights=config.weights, kv=config.kv)
        return model_preset(preset), gpu_preset(config.gpu), deployment
    except ValueError as error:
        raise ConfigError(f"worker {config.name or config.url}: {error}") from error


def _preset_for(served: str) -> str:
    """The preset whose name lies in the served model's name ("meta-llama/Llama-3.3-70B-Instruct-FP8"), or the default."""
    plain = _plain(served)
    fits = [name for name in MODEL_CONFIGS if _plain(name) in plain]
    return max(fits, key=len) if fits else DEFAULT_PRESET


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())

"""What an emulated worker is: a model on hardware, an engine's limits, a speed of time, and faults."""

import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from amf.core.cost import Deployment, kv_capacity_tokens, worker_profile
from amf.core.model import ModelSpec, model_from_config
from amf.core.presets import gpu_preset, model_preset
from amf.emulator.faults import Faults
from amf.sim.messages import SimWorkerConfig

MAX_EMBEDDING_DIM = 16_384
_MAX_PORT = 65_535


@dataclass(frozen=True, kw_only=True)
class EmulatorConfig:
    """`model` is a preset's name or the path of a Hugging Face `config.json`. `kv_tokens` None: what fits beside the weights.
    `max_waiting` None: no queue limit. `time_scale` 10: ten times faster than life. `kv_events_port` None: no KV events, 0:
    free ports. `port` 0: a free port. Weight and KV formats as in `core.cost.Deployment`.
    """

    model: str = "llama-3.1-8b"
    served_name: str | None = None
    gpu: str = "h200"
    tensor_parallel: int = 1
    weights: str = "fp8"
    kv: str = "fp8"
    kv_tokens: int | None = None
    block_tokens: int = 16
    max_running: int = 256
    token_budget: int = 2048
    max_model_tokens: int | None = None  # None: whatever fits in the KV memory
    force_usage: bool = False  # every stream tells its usage, asked or not, and goes on telling it
    scheduling: Literal["fcfs", "priority"] = "fcfs"
    max_waiting: int | None = None
    time_scale: float = 1.0
    seed: int = 0
    kv_events_port: int | None = None
    host: str = "127.0.0.1"
    port: int = 0
    flush_ms: float = 10.0
    embedding_dim: int = 256
    faults: Faults = field(default_factory=Faults)

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot be served."""
        if self.scheduling not in ("fcfs", "priority"):
            raise ValueError(f"scheduling-policy is fcfs or priority, not {self.scheduling!r}")
        if not 0 < self.time_scale < math.inf:
            raise ValueError("time-scale is a factor: above 0")
        if not 0 <= self.flush_ms < math.inf:
            raise ValueError("flush-ms is a number of at least 0")
        if not 1 <= self.embedding_dim <= MAX_EMBEDDING_DIM or not (
            self.max_model_tokens is None or self.max_model_tokens >= 2
        ):
            raise ValueError(f"embedding-dim is 1 to {MAX_EMBEDDING_DIM}, max-model-len at least 2")
        if self.max_waiting is not None and self.max_waiting < 0:
            raise ValueError("max-num-queued-reqs cannot be negative")
        if self.kv_events_port is not None and not 0 <= self.kv_events_port < _MAX_PORT:
            raise ValueError(f"kv-events-port is 0 to {_MAX_PORT - 1}: the next port is for replay")

    @property
    def model_name(self) -> str:
        return self.served_name or self.spec.name

    @property
    def context_tokens(self) -> int:
        """The longest sequence served: what was asked for, as far as the KV memory holds it."""
        room_tokens = self.kv_blocks * self.block_tokens
        return room_tokens if self.max_model_tokens is None else min(self.max_model_tokens, room_tokens)

    @property
    def kv_blocks(self) -> int:
        return self.worker.kv_tokens // self.block_tokens

    @cached_property
    def spec(self) -> ModelSpec:
        """Raises ValueError for an unknown preset or an unusable config, OSError if the file cannot be read."""
        path = Path(self.model)
        if path.suffix != ".json":
            return model_preset(self.model)
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"{path}: a model's config.json is a JSON object")
        return model_from_config(config, path.resolve().parent.name)

    @cached_property
    def worker(self) -> SimWorkerConfig:
        """Raises ValueError for unknown names and for weights that do not fit."""
        gpu = gpu_preset(self.gpu)
        deployment = Deployment(tensor_parallel=self.tensor_parallel, weights=self.weights, kv=self.kv)
        return SimWorkerConfig(
            profile=worker_profile(self.spec, gpu, deployment),
            kv_tokens=kv_capacity_tokens(self.spec, gpu, deployment) if self.kv_tokens is None else self.kv_tokens,
            block_tokens=self.block_tokens,
            max_running=self.max_running,
            token_budget=self.token_budget,
            max_waiting=self.max_waiting,
            scheduling=self.scheduling,
            prefix_caching=not self.spec.encoder,
        )

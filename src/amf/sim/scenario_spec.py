"""What a scenario file says, as frozen data: its tables, their keys, their defaults."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KINDS = ("claude-code", "mooncake", "azure", "otel", "recorded", "coding-sessions", "chat-requests", "graph", "mix")
RECORDED_KINDS = ("claude-code", "mooncake", "azure", "otel", "recorded")
TIMED_KINDS = ("mooncake", "azure", "otel", "recorded")  # their recordings say when pipelines arrived
MODEL_KINDS = ("claude-code", "otel", "recorded")  # their recordings name the models that were called
ARRIVALS = ("poisson", "gamma", "bursty", "trace")
# All at once and said to the fabric, all at once as plain calls, or one after the other.
SPECULATION = ("managed", "unmanaged", "off")
DEFAULT_CONCURRENCY = 64
DEFAULT_SLO_STRETCH = 3.0

Models = tuple[tuple[str, str], ...]  # (recorded model, pool)
Stretch = float | tuple[float, float]  # the same for all, or log-uniform between two for each pipeline


class ScenarioError(ValueError):
    """The scenario cannot be run as written. The message names the file, the key and the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartSpec:
    """[[workload.mix]]: one of several workloads. `share` is its weight among the pipelines, `tenant` whose they are. What is
    None is as [workload] says."""

    kind: str
    share: float = 1.0
    path: Path | None = None
    graph: str | None = None
    models: Models | None = None
    slo_stretch: Stretch | None = None
    slo_s: float | None = None
    think_cap_s: float | None = None
    scale_tokens: float | None = None
    share_system: bool | None = None
    tenant: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadSpec:
    """[workload]. Exactly one of `concurrency` (closed loop), `rate_per_s` and `load` (open loop) is set, except with
    arrival "trace", where none is; at most one of `slo_stretch` and `slo_s`, neither only where a recording may bring
    deadlines of its own. `scale_tokens` multiplies the context lengths of generated kinds, for demos on small workers."""

    kind: str
    path: Path | None = None
    graph: str | None = None
    mix: tuple[PartSpec, ...] | None = None
    models: Models | None = None
    pipelines: int = 400
    concurrency: int | None = None
    rate_per_s: float | None = None
    load: float | None = None
    arrival: str = "poisson"
    cv: float = 2.0
    slo_stretch: Stretch | None = None
    slo_s: float | None = None
    seed: int = 7
    think_cap_s: float = 300.0
    scale_tokens: float = 1.0
    share_system: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """[[pool]]: equal workers of one model. `model` is a preset's name or the path of a Hugging Face config.json. Several
    tables of one model are one pool of unequal workers. `dram_tokens`: a tier below each worker's KV memory (0: none), loaded
    back at `dram_bytes_per_s`. `kv_events`: the workers say what they store and evict."""

    model: str
    workers: int = 1
    gpu: str = "h200"
    tensor_parallel: int = 1
    weights: str = "fp8"
    kv: str = "fp8"
    kv_tokens: int | None = None
    dram_tokens: int = 0
    dram_bytes_per_s: float = 50e9
    kv_events: bool = True

    @property
    def name(self) -> str:
        """What the pool is called and clients ask for: the preset's name, or that of the config's folder or file."""
        path = Path(self.model)
        if path.suffix != ".json":
            return self.model
        return path.parent.name if path.name == "config.json" and path.parent.name else path.stem


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultSpec:
    """[faults]. Rates per worker and hour, shares from 0 to 1, seconds; `slow_worker` is how many times slower than its
    profile the first worker of the first pool is (1: no slow worker)."""

    worker_loss_per_h: float = 0.0
    event_loss: float = 0.0
    event_delay_s: float = 0.0
    metrics_staleness_s: float = 0.0
    slow_worker: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """[run]. `speculation`: what clients do with attempts and guesses (`SPECULATION`)."""

    policies: tuple[str, ...] = ("round-robin", "session-affinity", "fabric")
    speculation: str = "managed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """`pools` is as written: empty if the file has none, which only kind graph allows (its default fleet is then used).
    `fabric`: keys of FabricConfig and what they are set to; bench does not use them."""

    name: str
    workload: WorkloadSpec
    pools: tuple[PoolSpec, ...] = ()
    faults: FaultSpec = field(default_factory=FaultSpec)
    fabric: tuple[tuple[str, Any], ...] = ()
    run: RunSpec = field(default_factory=RunSpec)

"""A scenario file: what to run, on which fleet, under which policies. `amf bench` and the simulator read the same one.

Tables and defaults (the examples folder has one file of each kind):

    [workload]  kind, path, graph, pipelines 400, one of concurrency 64 | rate_per_s | load, arrival "poisson", cv 2.0,
                one of slo_stretch 3.0 | slo_s, seed 7, think_cap_s 300, scale_tokens 1.0
    [[pool]]    model, workers 1, gpu "h200", tensor_parallel 1, weights "fp8", kv "fp8", kv_tokens (derived)
    [faults]    worker_loss_per_h, event_loss, event_delay_s, metrics_staleness_s, slow_worker
    [fabric]    any bound of core/config.py by its own name
    [run]       policies ["round-robin", "session-affinity", "fabric"]
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from amf.core.config import FabricConfig
from amf.core.cost import Deployment, ModelSpec, kv_capacity_tokens, model_from_config, worker_profile
from amf.core.presets import gpu_preset, model_preset
from amf.core.types import Worker

KINDS = ("claude-code", "mooncake", "azure", "coding-sessions", "chat-requests", "graph")
RECORDED_KINDS = ("claude-code", "mooncake", "azure")
ARRIVALS = ("poisson", "gamma", "bursty", "trace")
DEFAULT_CONCURRENCY = 64
DEFAULT_SLO_STRETCH = 3.0


class ScenarioError(ValueError):
    """The scenario cannot be run as written. The message names the file, the key and the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadSpec:
    """[workload]. Exactly one of `concurrency` (closed loop), `rate_per_s` and `load` (open loop) is set, except with
    arrival "trace", where none is; exactly one of `slo_stretch` and `slo_s`. `scale_tokens` multiplies the context
    lengths of generated kinds, for demos on small workers."""

    kind: str
    path: Path | None = None
    graph: str | None = None
    pipelines: int = 400
    concurrency: int | None = None
    rate_per_s: float | None = None
    load: float | None = None
    arrival: str = "poisson"
    cv: float = 2.0
    slo_stretch: float | None = None
    slo_s: float | None = None
    seed: int = 7
    think_cap_s: float = 300.0
    scale_tokens: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """[[pool]]: the workers of one model. `model` is a preset's name or the path of a Hugging Face config.json."""

    model: str
    workers: int = 1
    gpu: str = "h200"
    tensor_parallel: int = 1
    weights: str = "fp8"
    kv: str = "fp8"
    kv_tokens: int | None = None

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
    policies: tuple[str, ...] = ("round-robin", "session-affinity", "fabric")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """`pools` is as written: empty if the file has none, which only kind graph allows (its default fleet is then used).
    `fabric`: keys of FabricConfig and what they are set to; bench does not use them."""

    name: str
    workload: WorkloadSpec
    pools: tuple[PoolSpec, ...] = ()
    faults: FaultSpec = field(default_factory=FaultSpec)
    fabric: tuple[tuple[str, float], ...] = ()
    run: RunSpec = field(default_factory=RunSpec)


Table = TypeVar("Table", WorkloadSpec, PoolSpec, FaultSpec, RunSpec)


def load_scenario(path: str | Path) -> Scenario:
    """Read a TOML scenario. Raises ScenarioError if it is missing, malformed or contradictory."""
    source = Path(path)
    try:
        data = tomllib.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise ScenarioError(f"{source}: cannot be read ({error.strerror}); give the path of a scenario file") from error
    except UnicodeDecodeError as error:
        raise ScenarioError(f"{source}: is not UTF-8 text; a scenario is a TOML file") from error
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"{source}: is not valid TOML: {error}") from error
    return scenario_from_dict(data, source)


def scenario_from_dict(data: Mapping[str, Any], source: str | Path) -> Scenario:
    """Build a scenario from parsed TOML. `source` names it in errors and anchors relative paths."""
    _reject_unknown(data, ("workload", "pool", "faults", "fabric", "run"), source, "the file")
    if "workload" not in data:
        raise ScenarioError(f'{source}: has no [workload] table; add one with at least kind = "{KINDS[0]}"')
    pools = data.get("pool", [])
    if not isinstance(pools, list):
        raise ScenarioError(f"{source}: [pool] must be written [[pool]], one table per pool")
    spec = _parse(WorkloadSpec, data["workload"], source, "[workload]")
    return Scenario(
        name=Path(source).stem,
        workload=_settled(spec, source),
        pools=_checked_pools(tuple(_parse(PoolSpec, pool, source, "[[pool]]") for pool in pools), source),
        faults=_checked_faults(_parse(FaultSpec, data.get("faults", {}), source, "[faults]"), source),
        fabric=_overrides(data.get("fabric", {}), source),
        run=_parse(RunSpec, data.get("run", {}), source, "[run]"),
    )


def pool_worker(pool: PoolSpec, index: int) -> Worker:
    """The `index`-th worker of a pool as the core sees it. Raises ScenarioError for unknown presets, an unreadable config
    and weights that leave no memory for KV."""
    try:
        model, gpu = _model(pool), gpu_preset(pool.gpu)
        deployment = Deployment(tensor_parallel=pool.tensor_parallel, weights=pool.weights, kv=pool.kv)
        profile = worker_profile(model, gpu, deployment)
        kv_tokens = pool.kv_tokens or kv_capacity_tokens(model, gpu, deployment)
    except ValueError as error:
        raise ScenarioError(f"[[pool]] {pool.model}: {error}") from error
    return Worker(name=f"{pool.name}-{index}", pool=pool.name, profile=profile, kv_tokens=kv_tokens)


def _model(pool: PoolSpec) -> ModelSpec:
    if not pool.model.endswith(".json"):
        return model_preset(pool.model)
    try:
        config = json.loads(Path(pool.model).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror}); give a preset's name or a config.json") from error
    if not isinstance(config, dict):
        raise ValueError("is not a JSON object; give a Hugging Face config.json")
    return model_from_config(config, pool.name)


def _parse(kind: type[Table], table: Any, source: str | Path, where: str) -> Table:
    if not isinstance(table, Mapping):
        raise ScenarioError(f"{source}: {where} must be a table of key = value lines")
    known = tuple(each.name for each in fields(kind))
    _reject_unknown(table, known, source, where)
    hints = get_type_hints(kind)
    values = {key: _value(value, hints[key], f"{source}: {where} {key}") for key, value in table.items()}
    try:
        return kind(**values)
    except TypeError as error:  # a required key is missing
        missing = ", ".join(each for each in ("kind", "model") if each in known and each not in values)
        raise ScenarioError(f"{source}: {where} lacks {missing}; add it") from error


def _overrides(table: Any, source: str | Path) -> tuple[tuple[str, float], ...]:
    """[fabric], in the order of FabricConfig, whatever that of the file."""
    if not isinstance(table, Mapping):
        raise ScenarioError(f"{source}: [fabric] must be a table of key = value lines")
    hints = get_type_hints(FabricConfig)
    _reject_unknown(table, tuple(hints), source, "[fabric]")
    values = {key: _value(table[key], hint, f"{source}: [fabric] {key}") for key, hint in hints.items() if key in table}
    for key, value in values.items():
        if value < 0:
            raise ScenarioError(f"{source}: [fabric] {key} = {value} must not be negative")
    return tuple(values.items())


def _value(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type a key asks for; integers serve as floats, strings as paths, lists as tuples."""
    wanted = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    for each in wanted:
        if each is NoneType:
            continue
        if each is Path and isinstance(value, str):
            return Path(value)
        if each is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if get_origin(each) is tuple and isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        if each in (int, str) and type(value) is each:
            return value
    names = {int: "a whole number", float: "a number", str: "a text", Path: "a path in quotes"}
    expected = names.get(wanted[0], "a list of texts")
    raise ScenarioError(f"{where} = {value!r} is not {expected}")


def _reject_unknown(table: Mapping[str, Any], known: tuple[str, ...], source: str | Path, where: str) -> None:
    for key in table:
        if key in known:
            continue
        near = get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        raise ScenarioError(f"{source}: unknown key {key!r} in {where}; {hint}")


def _settled(spec: WorkloadSpec, source: str | Path) -> WorkloadSpec:
    """The spec with its path resolved and its alternatives decided, or the reason why it contradicts itself."""
    _check_choice(spec.kind, KINDS, f"{source}: [workload] kind")
    _check_choice(spec.arrival, ARRIVALS, f"{source}: [workload] arrival")
    _check_exclusive(spec, ("concurrency", "rate_per_s", "load"), source)
    _check_exclusive(spec, ("slo_stretch", "slo_s"), source)
    _check_numbers(spec, source)
    _check_source_of_work(spec, source)
    changes: dict[str, Any] = {}
    open_loop = spec.rate_per_s is not None or spec.load is not None
    if spec.arrival == "trace" and (open_loop or spec.concurrency is not None):
        raise ScenarioError(
            f'{source}: [workload] arrival = "trace" takes its times from the recording; '
            "remove concurrency, rate_per_s and load"
        )
    if spec.arrival != "trace" and not open_loop and spec.concurrency is None:
        changes["concurrency"] = DEFAULT_CONCURRENCY
    if spec.slo_stretch is None and spec.slo_s is None:
        changes["slo_stretch"] = DEFAULT_SLO_STRETCH
    if spec.path is not None:
        changes["path"] = Path(source).parent / spec.path.expanduser()
    if spec.graph is not None and Path(spec.graph).suffix:
        changes["graph"] = str(Path(source).parent / spec.graph)
    return replace(spec, **changes)


def _check_choice(value: str, known: tuple[str, ...], where: str) -> None:
    if value not in known:
        near = get_close_matches(value, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(known)}"
        raise ScenarioError(f"{where} = {value!r} is unknown; {hint}")


def _check_exclusive(spec: WorkloadSpec, names: tuple[str, ...], source: str | Path) -> None:
    given = [name for name in names if getattr(spec, name) is not None]
    if len(given) > 1:
        raise ScenarioError(f"{source}: [workload] has {' and '.join(given)}, which exclude each other; keep one")


def _check_numbers(spec: WorkloadSpec, source: str | Path) -> None:
    for name in ("pipelines", "concurrency", "rate_per_s", "load", "cv", "slo_stretch", "slo_s", "scale_tokens"):
        value = getattr(spec, name)
        if value is not None and value <= 0:
            raise ScenarioError(f"{source}: [workload] {name} = {value} must be above 0")
    if spec.think_cap_s < 0:
        raise ScenarioError(f"{source}: [workload] think_cap_s = {spec.think_cap_s} must be 0 or more seconds")


def _check_source_of_work(spec: WorkloadSpec, source: str | Path) -> None:
    if spec.kind in RECORDED_KINDS and spec.path is None:
        raise ScenarioError(f'{source}: [workload] kind = "{spec.kind}" needs path = "…", the recording to replay')
    for name, fits in (("path", spec.kind in RECORDED_KINDS), ("graph", spec.kind == "graph")):
        if getattr(spec, name) is not None and not fits:
            raise ScenarioError(f'{source}: [workload] kind = "{spec.kind}" does not use {name}; remove it')
    if spec.kind in RECORDED_KINDS and spec.scale_tokens != 1:
        raise ScenarioError(f"{source}: [workload] scale_tokens is for generated kinds; a recording keeps its lengths")
    if spec.kind == "graph" and spec.graph is None:
        raise ScenarioError(
            f'{source}: [workload] kind = "graph" needs graph = "…", a built-in graph or a YAML, TOML or JSON file'
        )
    if spec.arrival == "trace" and spec.kind not in ("mooncake", "azure"):
        raise ScenarioError(
            f'{source}: [workload] kind = "{spec.kind}" records no arrival times; use arrival = "poisson" or concurrency'
        )


def _checked_pools(pools: tuple[PoolSpec, ...], source: str | Path) -> tuple[PoolSpec, ...]:
    seen: list[str] = []
    for pool in pools:
        for name in ("workers", "tensor_parallel", "kv_tokens"):
            value = getattr(pool, name)
            if value is not None and value <= 0:
                raise ScenarioError(f"{source}: [[pool]] {pool.model}: {name} = {value} must be above 0")
        if pool.name in seen:
            raise ScenarioError(f"{source}: [[pool]] {pool.model} is there twice; give one table with more workers")
        seen.append(pool.name)
    return tuple(
        replace(pool, model=str(Path(source).parent / pool.model)) if pool.model.endswith(".json") else pool
        for pool in pools
    )


def _checked_faults(faults: FaultSpec, source: str | Path) -> FaultSpec:
    for each in fields(faults):
        if getattr(faults, each.name) < 0:
            raise ScenarioError(f"{source}: [faults] {each.name} must not be negative")
    if faults.event_loss > 1:
        raise ScenarioError(f"{source}: [faults] event_loss = {faults.event_loss} is a share; use 0 to 1")
    if faults.slow_worker < 1:
        raise ScenarioError(f"{source}: [faults] slow_worker = {faults.slow_worker} is a slow-down; use 1 or more")
    return faults

"""A scenario file: what to run, on which fleet, under which policies. `amf bench` and the simulator read the same one.

Tables and keys are described in docs/scenarios.md; the examples folder has one file of each kind. Reading is strict: an
unknown key, a wrong type and a contradiction are errors that name the file, the key and the remedy.
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from math import inf
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from amf.core.config import FabricConfig
from amf.core.cost import Deployment, ModelSpec, kv_capacity_tokens, model_from_config, worker_profile
from amf.core.presets import gpu_preset, model_preset
from amf.core.types import Worker
from amf.sim.scenario_checks import checked_faults, checked_pools, checked_run, reject_unknown, settled
from amf.sim.scenario_spec import (
    ARRIVALS,
    KINDS,
    FaultSpec,
    Models,
    PartSpec,
    PoolSpec,
    RunSpec,
    Scenario,
    ScenarioError,
    WorkloadSpec,
)

__all__ = [
    "ARRIVALS",
    "KINDS",
    "FaultSpec",
    "PartSpec",
    "PoolSpec",
    "RunSpec",
    "Scenario",
    "ScenarioError",
    "WorkloadSpec",
    "load_scenario",
    "pool_worker",
    "pool_workers",
    "scenario_from_dict",
]

Table = TypeVar("Table", WorkloadSpec, PartSpec, PoolSpec, FaultSpec, RunSpec)


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
    reject_unknown(data, ("workload", "pool", "faults", "fabric", "run"), source, "the file")
    if "workload" not in data:
        raise ScenarioError(f'{source}: has no [workload] table; add one with at least kind = "{KINDS[0]}"')
    workload = settled(_workload(data["workload"], source), source)
    tenants = tuple(dict.fromkeys(part.tenant for part in workload.mix or () if part.tenant))
    pools = _tables(data.get("pool", []), source, "[pool] must be written [[pool]], one table per pool")
    return Scenario(
        name=Path(source).stem,
        workload=workload,
        pools=checked_pools(tuple(_parse(PoolSpec, pool, source, "[[pool]]") for pool in pools), source),
        faults=checked_faults(_parse(FaultSpec, data.get("faults", {}), source, "[faults]"), source),
        fabric=_overrides(data.get("fabric", {}), source, tenants),
        run=checked_run(_parse(RunSpec, data.get("run", {}), source, "[run]"), source),
    )


def pool_workers(pools: Sequence[PoolSpec]) -> tuple[Worker, ...]:
    """Every worker of the fleet as the core sees it, with KV events where its table says so. Tables of one model are one
    pool: their workers count on. Raises ScenarioError as `pool_worker`."""
    counts: dict[str, int] = {}
    workers: list[Worker] = []
    for pool in pools:
        for _ in range(pool.workers):
            index = counts.get(pool.name, 0)
            workers.append(replace(pool_worker(pool, index), has_kv_events=pool.kv_events))
            counts[pool.name] = index + 1
    return tuple(workers)


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
    return Worker(
        name=f"{pool.name}-{index}",
        pool=pool.name,
        profile=profile,
        kv_tokens=kv_tokens,
        dram_tokens=pool.dram_tokens,
        restore_bytes_per_s=pool.dram_bytes_per_s if pool.dram_tokens else None,
    )


def _workload(table: Any, source: str | Path) -> WorkloadSpec:
    if not isinstance(table, Mapping):
        return _parse(WorkloadSpec, table, source, "[workload]")
    parts = table.get("mix")
    if parts is None:
        return _parse(WorkloadSpec, table, source, "[workload]")
    parts = _tables(parts, source, "[workload.mix] must be written [[workload.mix]], one table per part")
    mix = tuple(_parse(PartSpec, part, source, "[[workload.mix]]") for part in parts)
    return _parse(WorkloadSpec, {**table, "mix": mix}, source, "[workload]")


def _tables(value: Any, source: str | Path, complaint: str) -> list[Any]:
    if not isinstance(value, list):
        raise ScenarioError(f"{source}: {complaint}")
    return value


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
    reject_unknown(table, known, source, where)
    hints = get_type_hints(kind)
    values = {key: _value(value, hints[key], f"{source}: {where} {key}") for key, value in table.items()}
    try:
        return kind(**values)
    except TypeError as error:  # a required key is missing
        missing = ", ".join(each for each in ("kind", "model") if each in known and each not in values)
        raise ScenarioError(f"{source}: {where} lacks {missing}; add it") from error


def _overrides(table: Any, source: str | Path, tenants: tuple[str, ...]) -> tuple[tuple[str, Any], ...]:
    """[fabric], in the order of FabricConfig, whatever that of the file. `tenants`: those of the workload."""
    if not isinstance(table, Mapping):
        raise ScenarioError(f"{source}: [fabric] must be a table of key = value lines")
    hints = get_type_hints(FabricConfig)
    reject_unknown(table, tuple(hints), source, "[fabric]")
    values: dict[str, Any] = {}
    for key, hint in hints.items():
        if key == "tenant_weights" and key in table:
            values[key] = _weights(table[key], tenants, source)
        elif key in table:
            values[key] = _value(table[key], hint, f"{source}: [fabric] {key}")
            if values[key] < 0:
                raise ScenarioError(f"{source}: [fabric] {key} = {values[key]} must not be negative")
            if key.endswith("_quantile") and values[key] > 1:
                raise ScenarioError(f"{source}: [fabric] {key} = {values[key]} is a share; use 0 to 1")
    return tuple(values.items())


def _weights(table: Any, tenants: tuple[str, ...], source: str | Path) -> dict[str, float]:
    where = f"{source}: [fabric.tenant_weights]"
    if not isinstance(table, Mapping):
        raise ScenarioError(f"{where} must be a table of lines tenant = weight")
    if not tenants:
        raise ScenarioError(f'{where} has nobody to weigh; give parts of [[workload.mix]] a tenant = "…"')
    reject_unknown(table, tenants, source, "[fabric.tenant_weights], which takes tenants of [[workload.mix]]")
    weights = {tenant: _value(weight, float, f"{where} {tenant}") for tenant, weight in table.items()}
    for tenant, weight in weights.items():
        if not 0 < weight < inf:
            raise ScenarioError(f"{where} {tenant} = {weight:g} must be above 0")
    return weights


def _value(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type a key asks for; integers serve as floats, strings as paths, lists as tuples."""
    wanted = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if Models in wanted:
        return _models(value, where)
    for each in wanted:
        if each is NoneType:
            continue
        if each is Path and isinstance(value, str):
            return Path(value)
        if each is float and _is_number(value):
            return float(value)
        if get_origin(each) is tuple and isinstance(value, tuple):  # tables that were parsed before
            return value
        if each == tuple[float, float] and isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)):
            return (float(value[0]), float(value[1]))
        if each == tuple[str, ...] and isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        if each in (int, str, bool) and type(value) is each:
            return value
    names = {
        int: "a whole number",
        float: "a number",
        str: "a text",
        bool: "true or false",
        Path: "a path in quotes",
    }
    expected = names.get(wanted[0], "a list of texts")
    if tuple[float, float] in wanted:
        expected += " or two of them in rising order, such as [1.5, 8.0]"
    raise ScenarioError(f"{where} = {value!r} is not {expected}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _models(value: Any, where: str) -> Models:
    if not isinstance(value, Mapping) or not all(isinstance(pool, str) for pool in value.values()):
        raise ScenarioError(f'{where} must be a table of lines "recorded model" = "pool"')
    return tuple(value.items())

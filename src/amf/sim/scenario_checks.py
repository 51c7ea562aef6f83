"""What contradicts itself in a scenario, said with file, key and remedy; and what is settled when nothing is said."""

from collections.abc import Mapping
from dataclasses import fields, replace
from difflib import get_close_matches
from math import inf
from pathlib import Path
from typing import Any

from amf.sim.scenario_spec import (
    ARRIVALS,
    DEFAULT_CONCURRENCY,
    DEFAULT_SLO_STRETCH,
    KINDS,
    MODEL_KINDS,
    RECORDED_KINDS,
    SPECULATION,
    TIMED_KINDS,
    FaultSpec,
    PartSpec,
    PoolSpec,
    RunSpec,
    ScenarioError,
    Stretch,
    WorkloadSpec,
)

Source = str | Path
_ABOVE_ZERO = ("pipelines", "concurrency", "rate_per_s", "load", "cv", "slo_s", "scale_tokens", "share")


def reject_unknown(table: Mapping[str, Any], known: tuple[str, ...], source: Source, where: str) -> None:
    for key in table:
        if key not in known:
            raise ScenarioError(f"{source}: unknown key {key!r} in {where}; {_nearest(key, known, 'known keys:')}")


def settled(spec: WorkloadSpec, source: Source) -> WorkloadSpec:
    """The spec with its paths resolved and its alternatives decided, or the reason why it contradicts itself."""
    where = f"{source}: [workload]"
    _check_content(spec, where)
    _check_choice(spec.arrival, ARRIVALS, f"{where} arrival")
    _check_exclusive(spec, ("concurrency", "rate_per_s", "load"), where)
    _check_arrival(spec, where)
    _check_mix(spec, where)
    changes: dict[str, Any] = _resolved(spec, source)
    if spec.arrival != "trace" and spec.rate_per_s is None and spec.load is None and spec.concurrency is None:
        changes["concurrency"] = DEFAULT_CONCURRENCY
    if spec.slo_stretch is None and spec.slo_s is None and spec.kind not in ("recorded", "mix"):
        changes["slo_stretch"] = DEFAULT_SLO_STRETCH
    if spec.mix is not None:
        parts = [replace(part, **_resolved(part, source)) for part in spec.mix]
        for part in parts:
            _check_content(part_workload(spec, part), f"{source}: [[workload.mix]]")
        changes["mix"] = tuple(parts)
    return replace(spec, **changes)


def part_workload(spec: WorkloadSpec, part: PartSpec) -> WorkloadSpec:
    """The part as a workload of its own; what it leaves open is as [workload] says."""
    own_slo = part.slo_s is not None or part.slo_stretch is not None
    slo = part if own_slo else spec
    return replace(
        spec,
        kind=part.kind,
        mix=None,
        path=part.path,
        graph=part.graph,
        models=(part.models if part.models is not None else spec.models) if part.kind in MODEL_KINDS else None,
        slo_stretch=slo.slo_stretch,
        slo_s=slo.slo_s,
        think_cap_s=spec.think_cap_s if part.think_cap_s is None else part.think_cap_s,
        scale_tokens=_generated(part, spec) if part.scale_tokens is None else part.scale_tokens,
        share_system=bool(part.share_system),
    )


def checked_pools(pools: tuple[PoolSpec, ...], source: Source) -> tuple[PoolSpec, ...]:
    model_of: dict[str, str] = {}
    for pool in pools:
        if pool.dram_tokens < 0:
            raise ScenarioError(
                f"{source}: [[pool]] {pool.model}: dram_tokens = {pool.dram_tokens} must be 0 (no tier) or more"
            )
        for name in ("workers", "tensor_parallel", "kv_tokens", "dram_bytes_per_s"):
            value = getattr(pool, name)
            if value is not None and value <= 0:
                raise ScenarioError(f"{source}: [[pool]] {pool.model}: {name} = {value} must be above 0")
        if model_of.setdefault(pool.name, pool.model) != pool.model:
            raise ScenarioError(
                f"{source}: [[pool]] {model_of[pool.name]} and {pool.model} are both called {pool.name}, and a pool has one "
                "model; rename the folder of one"
            )
    return tuple(
        replace(pool, model=str(Path(source).parent / pool.model)) if pool.model.endswith(".json") else pool
        for pool in pools
    )


def checked_faults(faults: FaultSpec, source: Source) -> FaultSpec:
    for each in fields(faults):
        if getattr(faults, each.name) < 0:
            raise ScenarioError(f"{source}: [faults] {each.name} must not be negative")
    if faults.event_loss > 1:
        raise ScenarioError(f"{source}: [faults] event_loss = {faults.event_loss} is a share; use 0 to 1")
    if faults.slow_worker < 1:
        raise ScenarioError(f"{source}: [faults] slow_worker = {faults.slow_worker} is a slow-down; use 1 or more")
    return faults


def checked_run(run: RunSpec, source: Source) -> RunSpec:
    _check_choice(run.speculation, SPECULATION, f"{source}: [run] speculation")
    return run


def _nearest(word: str, known: tuple[str, ...], else_say: str) -> str:
    near = get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"{else_say} {', '.join(known)}"


def _check_choice(value: str, known: tuple[str, ...], where: str) -> None:
    if value not in known:
        raise ScenarioError(f"{where} = {value!r} is unknown; {_nearest(value, known, 'choose one of')}")


def _check_exclusive(spec: WorkloadSpec, names: tuple[str, ...], where: str) -> None:
    given = [name for name in names if getattr(spec, name) is not None]
    if len(given) > 1:
        raise ScenarioError(f"{where} has {' and '.join(given)}, which exclude each other; keep one")


def _check_content(spec: WorkloadSpec, where: str) -> None:
    """The kind, what it is read from, and its numbers."""
    _check_choice(spec.kind, KINDS, f"{where} kind")
    _check_exclusive(spec, ("slo_stretch", "slo_s"), where)
    _check_numbers(spec, where)
    kind = f'{where} kind = "{spec.kind}"'
    recorded = spec.kind in RECORDED_KINDS
    if recorded and spec.path is None:
        raise ScenarioError(f'{kind} needs path = "…", the recording to replay')
    if spec.kind == "graph" and spec.graph is None:
        raise ScenarioError(f'{kind} needs graph = "…", a built-in graph or a YAML, TOML or JSON file')
    if spec.kind == "mix" and not spec.mix:
        raise ScenarioError(f"{kind} needs [[workload.mix]] tables, one for each part")
    uses = {
        "path": recorded,
        "graph": spec.kind == "graph",
        "mix": spec.kind == "mix",
        "models": spec.kind in (*MODEL_KINDS, "mix"),
    }
    for name, fits in uses.items():
        if getattr(spec, name) is not None and not fits:
            raise ScenarioError(f"{kind} does not use {name}; remove it")
    if spec.share_system and spec.kind != "claude-code":
        raise ScenarioError(f"{kind} does not use share_system; it is for claude-code")
    if recorded and spec.scale_tokens != 1:
        raise ScenarioError(f"{where} scale_tokens is for generated kinds; a recording keeps its lengths")


def _check_numbers(spec: WorkloadSpec | PartSpec, where: str) -> None:
    for name in _ABOVE_ZERO:
        value = getattr(spec, name, None)
        if value is not None and value <= 0:
            raise ScenarioError(f"{where} {name} = {value} must be above 0")
    _check_stretch(spec.slo_stretch, f"{where} slo_stretch")
    if spec.think_cap_s is not None and spec.think_cap_s < 0:
        raise ScenarioError(f"{where} think_cap_s = {spec.think_cap_s} must be 0 or more seconds")


def _check_stretch(stretch: Stretch | None, where: str) -> None:
    if isinstance(stretch, tuple):
        low, high = stretch
        if not 0 < low < high < inf:
            raise ScenarioError(
                f"{where} = [{low:g}, {high:g}] must be two numbers above 0 in rising order, such as [1.5, 8.0]; write one "
                "number for the same stretch everywhere"
            )
    elif stretch is not None and stretch <= 0:
        raise ScenarioError(f"{where} = {stretch} must be above 0")


def _check_arrival(spec: WorkloadSpec, where: str) -> None:
    if spec.arrival != "trace":
        return
    if spec.rate_per_s is not None or spec.load is not None or spec.concurrency is not None:
        raise ScenarioError(
            f'{where} arrival = "trace" takes its times from the recording; remove concurrency, rate_per_s and load'
        )
    if spec.kind not in TIMED_KINDS:
        raise ScenarioError(
            f'{where} kind = "{spec.kind}" records no arrival times; use arrival = "poisson" or concurrency'
        )


def _check_mix(spec: WorkloadSpec, where: str) -> None:
    for part in spec.mix or ():
        _check_numbers(part, f"{where[:-10]}[[workload.mix]]")
        if part.kind == "mix":
            raise ScenarioError(f'{where} mix has a part of kind "mix"; list its parts beside the others')
    if sum(bool(part.share_system) for part in spec.mix or ()) > 1:
        raise ScenarioError(
            f"{where} mix has several parts with share_system; put their sessions into one folder and part"
        )


def _resolved(spec: WorkloadSpec | PartSpec, source: Source) -> dict[str, Any]:
    """Paths are relative to the scenario file."""
    changes: dict[str, Any] = {}
    if spec.path is not None:
        changes["path"] = Path(source).parent / spec.path.expanduser()
    if spec.graph is not None and Path(spec.graph).suffix:
        changes["graph"] = str(Path(source).parent / spec.graph)
    return changes


def _generated(part: PartSpec, spec: WorkloadSpec) -> float:
    """[workload] scale_tokens, for the parts it is meant for."""
    return 1.0 if part.kind in RECORDED_KINDS else spec.scale_tokens

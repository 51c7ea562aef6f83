"""One file a study. Its docstring's first line is what `amf experiment` says of it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from types import ModuleType

from amf.experiment.studies import (
    ablation,
    calibration,
    deadlines,
    estimator_error,
    fragmentation,
    herding,
    load_sweep,
    memory_pressure,
    rivals,
    scale,
    sessions,
    slo_scale,
    speculation,
    staleness,
    tiers,
)
from amf.experiment.study import Options, Setting, Study
from amf.sim.memory.scenario import MemoryScenario
from amf.sim.scenario import ScenarioError

_MODULES: Mapping[str, ModuleType] = {
    "sessions": sessions,
    "memory-pressure": memory_pressure,
    "tiers": tiers,
    "rivals": rivals,
    "load-sweep": load_sweep,
    "deadlines": deadlines,
    "slo-scale": slo_scale,
    "calibration": calibration,
    "speculation": speculation,
    "ablation": ablation,
    "estimator-error": estimator_error,
    "staleness": staleness,
    "herding": herding,
    "scale": scale,
    "fragmentation": fragmentation,
}
STUDIES: Mapping[str, Callable[[Options], Study]] = {name: module.study for name, module in _MODULES.items()}


def about(name: str) -> str:
    """One line."""
    return (_MODULES[name].__doc__ or "").partition("\n")[0]


def study_named(name: str, options: Options) -> Study:
    """Raises ScenarioError that says which name is nearest."""
    if name not in STUDIES:
        near = get_close_matches(name, STUDIES, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(STUDIES)}"
        raise ScenarioError(f"unknown experiment {name!r}; {hint}")
    study = STUDIES[name](options)
    if options.pipelines is None:
        return study
    return replace(study, settings=tuple(_sized(setting, options.pipelines) for setting in study.settings))


def _sized(setting: Setting, pipelines: int) -> Setting:
    scenario = setting.scenario
    if isinstance(scenario, MemoryScenario):
        return replace(setting, scenario=replace(scenario, workload=replace(scenario.workload, pipelines=pipelines)))
    return replace(setting, scenario=replace(scenario, workload=replace(scenario.workload, pipelines=pipelines)))

"""Playing a study, and its document: what `--json` writes and pages and tables are made from.

    {"experiment", "seed", "goals": [...], "rows": [...], "comparisons": [...], ...}

`rows` are means over the seeds, one for each setting (or average of settings) and variant: the fields of a report, with
`setting`, `x`, `series` and `seeds`. `comparisons`: the fabric against the strongest other, figure by figure, in each setting
that has both; the fabric in another form is no other where there are real ones. The document depends on the study and its
seeds alone; only where the study says it is `measured` do rows carry what the machine took.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from amf import __version__
from amf.experiment.goals import judge, others
from amf.experiment.kept import run_file
from amf.experiment.study import OURS, Average, Options, Setting, Study
from amf.sim.paired import comparisons, means, together
from amf.sim.report import Report
from amf.sim.study import Case
from amf.simulate.play import Played, Players, Task, kept
from amf.simulate.run import play_tasks

Document = dict[str, Any]


def tasks_of(study: Study, runs: Path | None = None) -> list[Task]:
    """Setting by setting, seed by seed: what shares a workload stands together, so that it is made once. `runs`: the folder
    in which each leaves its figures."""
    tasks: list[Task] = []
    for setting in study.settings:
        for seed in study.seeds:
            for variant in setting.variants:
                case = Case(
                    policy=variant.name,
                    seed=seed,
                    bundle=variant.bundle,
                    config=variant.config,
                    error_sigma=variant.error_sigma,
                    calibrated=variant.calibrated,
                    speculation=variant.speculation,
                )
                file = runs and run_file(runs, study.name, setting.label, setting.scenario, case)
                tasks.append(Task(scenario=setting.scenario, case=case, label=setting.label, keep=file))
    return tasks


def run(study: Study, options: Options, players: Players, width: str, runs: Path | None = None) -> Document:
    """`width`: how many play, for the first line of progress. `runs`: a folder of finished runs, which are not played again.
    Raises as `play_tasks` does, and OSError."""
    tasks = tasks_of(study, runs)
    found = {index: old for index, task in enumerate(tasks) if task.keep and (old := kept(task.keep))}
    missing = [index for index in range(len(tasks)) if index not in found]
    known = f" ({len(found)} more are kept)" if found else ""
    start = f"amf experiment {study.name}: runs {len(missing)}{known}, {width}"
    played = play_tasks([tasks[index] for index in missing], players, start) if missing else []
    found |= dict(zip(missing, played, strict=True))
    reports: dict[str, list[Report]] = {setting.label: [] for setting in study.settings}
    for index, task in enumerate(tasks):
        reports[task.label].append(_report(found[index], study.measured))
    return document(study, options, reports)


def document(study: Study, options: Options, reports: dict[str, list[Report]]) -> Document:
    """`reports` by setting: every variant on every seed."""
    averages = {each.label: together(each.label, [reports[label] for label in each.of]) for each in study.averages}
    every = {**averages, **reports}
    goals = [judge(goal, every) for goal in study.goals]
    places: tuple[Setting | Average, ...] = (*study.averages, *study.settings)
    return {
        "experiment": study.name,
        "seed": study.seeds[0],
        "seeds": list(study.seeds),
        "quick": options.quick,
        "command": command_of(study.name, options),
        "amf_version": __version__,
        "question": study.question,
        "goals": goals,
        "axis": study.axis or None,
        "drawn": list(study.drawn),
        "rows": [row for place in places for row in _rows(place, every[place.label])],
        "comparisons": [
            {"setting": label, **each.to_dict()}
            for label, here in every.items()
            if OURS in {report["policy"] for report in here}
            for each in comparisons([each for each in here if each["policy"] in {OURS, *others(OURS, here)}], OURS)
        ],
        "notes": [*study.notes, *(goal["note"] for goal in goals if goal["note"]), *_notes(reports)],
    }


def _report(played: Played, measured: bool) -> Report:
    if not measured:
        return played.report
    rate = played.calls / played.cpu_s if played.cpu_s else None
    return {**played.report, "measured": {"calls_per_s": rate, "peak_bytes": float(played.peak_bytes)}}


def _rows(setting: Setting | Average, reports: Sequence[Report]) -> list[Report]:
    place = {"setting": setting.label, "x": setting.x, "series": setting.series}
    return [{**place, **row} for row in means(reports)]


def _notes(reports: dict[str, list[Report]]) -> list[str]:
    """What is said of a workload or a policy on every seed, each once, with the settings it is true of if not all are."""
    places: dict[str, list[str]] = {}
    for label, here in reports.items():
        for first in here:
            mine = [report for report in here if report["policy"] == first["policy"]]
            for note in first["notes"]:
                if all(note in report["notes"] for report in mine) and label not in places.setdefault(note, []):
                    places[note].append(label)
    found = {note: where for note, where in places.items() if where}
    return [note if len(where) == len(reports) else f"{', '.join(where)}: {note}" for note, where in found.items()]


def command_of(name: str, options: Options) -> str:
    """What to type for this study."""
    parts = ["amf experiment", name]
    parts += ["--quick"] if options.quick else []
    parts += [f"--seeds {options.seeds}"] if options.seeds else []
    parts += [f"--pipelines {options.pipelines}"] if options.pipelines else []
    parts += [f"--trace {path.name}" for _, path in options.traces]
    return " ".join(parts)

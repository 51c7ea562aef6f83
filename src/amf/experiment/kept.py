"""Where a run's report is kept, so that an interrupted study goes on where it was.

A file's name is a digest of all that a run depends on: the study's name for it, its scenario, the recording that this plays,
its case, and the code that plays it (every file of `_PLAYS`). What another version of the code has found is therefore never
taken for this one's.
"""

from functools import cache
from hashlib import blake2b
from importlib.resources import files
from pathlib import Path

from amf.sim.memory.scenario import MemoryScenario
from amf.sim.scenario import Scenario
from amf.sim.study import Case

_PLAYS = ("core", "sim", "simulate", "experiment/studies")


def run_file(folder: Path, study: str, label: str, scenario: Scenario | MemoryScenario, case: Case) -> Path:
    """In `folder`. A case's bundle is code of the study, known by the case's name. Raises OSError."""
    path = scenario.workload.path if isinstance(scenario, Scenario) else None
    recording = _content(path) if path else ""
    how = (case.policy, case.seed, case.config, case.error_sigma, case.calibrated, case.speculation)
    told = (study, label, scenario, recording, *how)
    package = Path(str(files("amf")))
    code = [_content(package / part) for part in _PLAYS]
    return folder / f"{blake2b(f'{code}{told!r}'.encode(), digest_size=16).hexdigest()}.json"


@cache
def _content(path: Path) -> str:
    """Of a file, or of all files below a folder."""
    digest = blake2b(digest_size=16)
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file() and "__pycache__" not in file.parts:
            digest.update(file.relative_to(path).as_posix().encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()

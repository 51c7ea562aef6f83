"""Where a run's report is kept, so that an interrupted study goes on where it was.

A file's name is a digest of all that a run depends on: the study's name for it, its scenario, its case, and the code itself
(every source file of this package). What another version of the code has found is therefore never taken for this one's.
"""

from functools import cache
from hashlib import blake2b
from importlib.resources import files
from pathlib import Path

from amf.sim.scenario import Scenario
from amf.sim.study import Case


def run_file(folder: Path, study: str, label: str, scenario: Scenario, case: Case) -> Path:
    """In `folder`. A case's bundle is code of the study, known by the case's name."""
    told = (study, label, scenario, case.policy, case.seed, case.config, case.error_sigma)
    return folder / f"{blake2b(f'{_code()}{told!r}'.encode(), digest_size=16).hexdigest()}.json"


@cache
def _code() -> str:
    package = Path(str(files("amf")))
    digest = blake2b(digest_size=16)
    for source in sorted(package.rglob("*.py")):
        digest.update(source.relative_to(package).as_posix().encode())
        digest.update(source.read_bytes())
    return digest.hexdigest()

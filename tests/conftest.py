"""Makes the shared helpers importable, those of bench/ too, and property tests repeatable where a build must be: with CI set
they draw the same examples every time; elsewhere they go on searching."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "bench")]
pytest.register_assert_rewrite("contract.engine_suite", "contract.refusals", "contract.under_test")

settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

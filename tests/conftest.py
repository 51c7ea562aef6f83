"""Makes the shared helpers importable, and property tests repeatable where a build must be: with CI set they draw the same
examples every time; elsewhere they go on searching."""

import os
import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

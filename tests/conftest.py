"""Builders shared by all tests: small words for events, so that a test reads as events in, decisions out."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

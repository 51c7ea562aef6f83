"""The event loop of everything that measures: uvloop where it exists, since the driver must not be the bottleneck."""

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

if sys.platform == "win32":
    _new_loop = asyncio.new_event_loop
else:
    import uvloop

    _new_loop = uvloop.new_event_loop

Result = TypeVar("Result")


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """`asyncio.run` on the fast loop."""
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        return runner.run(main)

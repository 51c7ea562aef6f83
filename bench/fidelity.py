"""The simulated worker against a real vLLM on this machine: the same requests to both, and what differs.

    .venv/bin/python bench/fidelity.py [--seed 10] [--only behaviour|pace] [--json out/fidelity.json] [--page docs/fidelity.md]

`behaviour` compares streams whose every effect is determined (bench/real/streams.py); `pace` fits the cost model's time form
to the engine and judges it (bench/real/pace.py). With `--only`, the other part of an existing JSON file stays. `--page` writes
the figures between the marks of a Markdown page. The engine comes from `make engines`. Ends with status 1 if a stream differs.
"""

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from real.install import TORCH, VLLM
from real.mirror import mirror
from real.pace import SETUP as PACE_SETUP
from real.pace import measure_pace
from real.page import write_page
from real.play import open_player
from real.seen import compare
from real.server import vllm
from real.streams import SETUPS, cases
from real.traffic import Stream


async def behaviour(seed: int, folder: Path) -> dict[str, Any]:
    """Every stream on the server it is for."""
    results: dict[str, Any] = {}
    for name, setup in SETUPS.items():
        mine = {key: case for key, case in cases(seed).items() if case.setup == name}
        with vllm(setup, folder) as server:
            async with open_player(server) as player:
                for key, case in mine.items():
                    print(f"{key}: {case.shows} ...", file=sys.stderr, flush=True)
                    waves, seen = await player.play(Stream(case.shape))
                    agreement = compare(seen, mirror(waves, seen, setup))
                    results[key] = {"shows": case.shows, "flags": setup.flags(), "exact": agreement.exact}
                    results[key] |= {"seed": seed, **asdict(agreement)}
    return {"machine": machine(), "streams": results}


async def pace(seed: int, count: int, folder: Path) -> dict[str, Any]:
    """The time form, fitted and judged."""
    with vllm(PACE_SETUP, folder) as server:
        async with open_player(server) as player:
            print(f"pace: {count} requests ...", file=sys.stderr, flush=True)
            report = await measure_pace(player, seed, count)
    return {"machine": machine(), "seed": seed, "flags": PACE_SETUP.flags(), **asdict(report)}


def machine() -> dict[str, Any]:
    """What ran it, and how busy that was with other things."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "load_1_min": round(os.getloadavg()[0], 1),
        "vllm": VLLM,
        "torch": TORCH,
        "python": platform.python_version(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=10)
    parser.add_argument("--requests", type=int, default=120, help="of the pace measurement, all thirds")
    parser.add_argument("--only", choices=("behaviour", "pace"))
    parser.add_argument("--json", type=Path, default=Path("out/fidelity.json"))
    parser.add_argument("--page", type=Path)
    options = parser.parse_args(arguments)
    report: dict[str, Any] = json.loads(options.json.read_text()) if options.only and options.json.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        if options.only != "pace":
            report["behaviour"] = asyncio.run(behaviour(options.seed, Path(folder)))
        if options.only != "behaviour":
            report["pace"] = asyncio.run(pace(options.seed, options.requests, Path(folder)))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.page:
        write_page(options.page, report)
    return 0 if all_exact(report) else 1


def all_exact(report: Mapping[str, Any]) -> bool:
    return all(stream["exact"] for stream in report.get("behaviour", {}).get("streams", {}).values())


if __name__ == "__main__":
    sys.exit(main())

"""The simulated worker does what a real vLLM does: the same cached tokens, the same blocks stored and evicted in the same
iterations, the same preemptions, the same order of ends."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from real.mirror import mirror
from real.play import open_player
from real.seen import compare
from real.server import Server, vllm
from real.streams import SETUPS, cases
from real.traffic import Stream

SEED = 10
SHARE = 0.5
CASES = cases(SEED, SHARE)


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Server]]:
    """Starts a server by the name of its setup, unless it is the one that runs; there is one at a time."""
    with ExitStack() as stack:
        started: dict[str, Server] = {}

        def server(setup: str) -> Server:
            if setup not in started:
                stack.close()
                started.clear()
                started[setup] = stack.enter_context(vllm(SETUPS[setup], tmp_path_factory.mktemp("vllm")))
            return started[setup]

        yield server


@pytest.mark.parametrize("name", CASES)
async def test_a_stream_has_the_same_effects(serving: Callable[[str], Server], name: str) -> None:
    case = CASES[name]
    server = serving(case.setup)
    for _ in range(3):  # an order seen wrongly is not seen wrongly each time
        async with open_player(server) as player:
            waves, real = await player.play(Stream(case.shape))
        agreement = compare(real, mirror(waves, real, server.setup))
        if agreement.exact or not agreement.exact_inside:
            break
    assert agreement.exact, agreement
    assert agreement.cached_tokens[0] > 0 and agreement.evictions[0] > 0
    if "late" in name:
        assert agreement.preemptions[0] > 0, "memory is never short: the stream does not show what it is there for"

"""A real vLLM server on free local ports, for as long as a `with` block lasts; nothing outlives it (see keeper.py).

Flags that make its behaviour repeatable, and why: `--load-format dummy` (random weights, the same each time) and
`--enforce-eager` (no graphs to compile or to pad batches for); one thread. vLLM turns asynchronous scheduling off on CPU,
whatever is asked. `--enable-logging-iteration-details` makes it log how many tokens each iteration had and how long it took.
VLLM_SERVER_DEV_MODE opens /pause and /resume, with which requests are queued in a known order before the first is scheduled.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from json import dumps
from pathlib import Path

from real.process import Command, free_ports, running
from real.tiny_model import build

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / ".venv-engines"
MODEL_NAME = "tiny"
CONTEXT_TOKENS = 16_384


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One server's model and limits. On CPU a block has a multiple of 32 tokens; one block of `kv_blocks` is vLLM's own."""

    kv_blocks: int
    model: str = MODEL_NAME
    layers: int = 4
    block_tokens: int = 32
    max_running: int = 128
    token_budget: int = 2048
    scheduling: str = "fcfs"

    @property
    def kv_tokens(self) -> int:
        """What requests can use."""
        return (self.kv_blocks - 1) * self.block_tokens

    @property
    def context_tokens(self) -> int:
        """Prompt and output together; vLLM refuses to start with more than its KV memory holds."""
        return min(CONTEXT_TOKENS, self.kv_tokens)

    def flags(self) -> list[str]:
        """Command line options of `vllm serve`."""
        return [
            *("--served-model-name", self.model, "--load-format", "dummy", "--dtype", "bfloat16", "--enforce-eager"),
            *("--block-size", str(self.block_tokens), "--num-gpu-blocks-override", str(self.kv_blocks)),
            *("--max-num-seqs", str(self.max_running), "--max-num-batched-tokens", str(self.token_budget)),
            *("--max-model-len", str(self.context_tokens), "--scheduling-policy", self.scheduling),
            *("--enable-prefix-caching", "--enable-prompt-tokens-details", "--enable-force-include-usage"),
            "--enable-logging-iteration-details",
        ]


@dataclass(frozen=True, kw_only=True)
class Server:
    setup: Setup
    url: str
    log: Path
    kv_events: str
    kill: Callable[[], None]


@contextmanager
def vllm(setup: Setup, folder: Path) -> Iterator[Server]:
    """A server that answers; its model and log lie in `folder`. Raises RuntimeError, with its complaint, if it does not
    start."""
    program = ENVIRONMENT / "bin" / "vllm"
    if not program.exists():
        raise RuntimeError(f"there is no engine in {ENVIRONMENT}: run `make engines`")
    model = build(folder / "model", context_tokens=CONTEXT_TOKENS, layers=setup.layers)
    port, events, replay = free_ports(3)
    kv_events = f"tcp://127.0.0.1:{events}"
    publisher = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": f"tcp://*:{events}",
        "replay_endpoint": f"tcp://*:{replay}",
    }
    arguments = [program, "serve", str(model), "--host", "127.0.0.1", "--port", str(port), *setup.flags()]
    command = Command(
        name="vLLM",
        arguments=[*arguments, "--kv-events-config", dumps(publisher)],
        environment=_environment(),
        url=f"http://127.0.0.1:{port}",
        log=folder / f"vllm-{port}.log",
    )
    with running(command) as kill:
        yield Server(setup=setup, url=command.url, log=command.log, kv_events=kv_events, kill=kill)


@contextmanager
def fleet(setups: Sequence[Setup], folder: Path) -> Iterator[list[Server]]:
    """A server for each setup, started side by side. Raises RuntimeError if one does not start."""
    homes = [folder / str(number) for number in range(len(setups))]
    for home in homes:
        home.mkdir()
    with ExitStack() as stack:
        with ThreadPoolExecutor() as pool:
            servers = list(pool.map(stack.enter_context, map(vllm, setups, homes)))
        yield servers


def _environment() -> dict[str, str]:
    return {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "PATH": f"{ENVIRONMENT / 'bin'}:{os.environ.get('PATH', '')}",
    }

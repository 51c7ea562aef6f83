"""A real SGLang server on free local ports, for as long as a `with` block lasts; nothing outlives it (see keeper.py).

Plain torch computes, one batch after the other: `torch_native` attention, no overlap of scheduling with computing, no graphs,
no grammars. Scheduler, radix cache, events and HTTP server are those of any SGLang; its speed says nothing. While it waits
its scheduler would keep a core busy, but for `--sleep-on-idle`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from json import dumps
from pathlib import Path

from real.process import Command, free_ports, running
from real.server import CONTEXT_TOKENS, ENVIRONMENT, MODEL_NAME
from real.tiny_model import build

PYTHON = ENVIRONMENT / "sglang" / "bin" / "python"
SERVE = Path(__file__).with_name("sglang_serve.py")


@dataclass(frozen=True, kw_only=True)
class SglangSetup:
    """One server's limits. `more`: further flags of `sglang serve`."""

    kv_tokens: int
    page_tokens: int = 16
    max_running: int = 128
    more: tuple[str, ...] = ()

    @property
    def context_tokens(self) -> int:
        """Prompt and output together."""
        return min(CONTEXT_TOKENS, self.kv_tokens)

    def flags(self) -> list[str]:
        """Command line options of `sglang serve`."""
        return [
            *("--served-model-name", MODEL_NAME, "--load-format", "dummy", "--dtype", "bfloat16", "--device", "cpu"),
            *("--attention-backend", "torch_native", "--sampling-backend", "pytorch", "--grammar-backend", "none"),
            *("--disable-overlap-schedule", "--disable-cuda-graph", "--sleep-on-idle", "--mem-fraction-static", "0.05"),
            *("--page-size", str(self.page_tokens), "--max-total-tokens", str(self.kv_tokens)),
            *("--max-running-requests", str(self.max_running), "--context-length", str(self.context_tokens)),
            *("--enable-priority-scheduling", "--enable-cache-report"),
            *("--stream-response-default-include-usage", "--load-snapshot-publish-interval", "1", *self.more),
        ]


@dataclass(frozen=True, kw_only=True)
class SglangServer:
    setup: SglangSetup
    url: str


@contextmanager
def sglang(setup: SglangSetup, folder: Path) -> Iterator[SglangServer]:
    """A server that answers; its model and log lie in `folder`. Raises RuntimeError, with its complaint, if it does not
    start."""
    if not PYTHON.exists():
        raise RuntimeError(f"there is no SGLang in {PYTHON.parents[1]}: run `make engines`")
    model = build(folder / "model", context_tokens=CONTEXT_TOKENS)
    port, events, replay = free_ports(3)
    publisher = {"publisher": "zmq", "endpoint": f"tcp://*:{events}", "replay_endpoint": f"tcp://*:{replay}"}
    address = ["--model-path", str(model), "--host", "127.0.0.1", "--port", str(port)]
    command = Command(
        name="SGLang",
        arguments=[PYTHON, SERVE, *address, *setup.flags(), "--kv-events-config", dumps(publisher)],
        environment={
            "SGLANG_USE_CPU_ENGINE": "1",
            "PYTHONSAFEPATH": "1",  # this folder's files are not to be taken for packages, this one first of all
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
        },
        url=f"http://127.0.0.1:{port}",
        log=folder / f"sglang-{port}.log",
    )
    with running(command):
        yield SglangServer(setup=setup, url=command.url)

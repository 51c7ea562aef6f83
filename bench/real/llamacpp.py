"""A real llama.cpp server on a free local port, for as long as a `with` block lasts; nothing outlives it (see keeper.py)."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from real.process import Command, free_ports, running
from real.server import ENVIRONMENT, MODEL_NAME
from real.tiny_model import build

HERE = Path(__file__).parent
PYTHON = ENVIRONMENT / "llamacpp" / "bin" / "python"


@dataclass(frozen=True, kw_only=True)
class LlamaCppSetup:
    """One server's flags. `unified`: the slots share the context; else each has its part of it."""

    slots: int = 4
    context_tokens: int = 16_384
    unified: bool = True
    metrics: bool = True
    cache_ram_mib: int = 256

    def settings(self) -> dict[str, object]:
        """As llama.cpp's parameters are called inside."""
        return {
            "model_alias": MODEL_NAME,
            "n_parallel": self.slots,
            "n_ctx": self.context_tokens,
            "kv_unified": int(self.unified),
            "endpoint_metrics": int(self.metrics),
            "cache_ram_mib": self.cache_ram_mib,
        }


@dataclass(frozen=True, kw_only=True)
class LlamaCppServer:
    setup: LlamaCppSetup
    url: str


@contextmanager
def llamacpp(setup: LlamaCppSetup, folder: Path) -> Iterator[LlamaCppServer]:
    """A server that answers; its model and log lie in `folder`. Raises RuntimeError, with its complaint, if it does not
    start."""
    if not PYTHON.exists():
        raise RuntimeError(f"there is no llama.cpp in {PYTHON.parents[1]}: run `make engines`")
    file = folder / "tiny.gguf"
    if not file.exists():
        model = build(folder / "model", context_tokens=setup.context_tokens)
        subprocess.run([PYTHON, HERE / "tiny_gguf.py", model, file], check=True)
    (port,) = free_ports(1)
    settings = [f"{name}={value}" for name, value in setup.settings().items()]
    command = Command(
        name="llama.cpp's server",
        arguments=[PYTHON, HERE / "llamacpp_serve.py", file, str(port), *settings],
        environment={},
        url=f"http://127.0.0.1:{port}",
        log=folder / f"llamacpp-{port}.log",
    )
    with running(command):
        yield LlamaCppServer(setup=setup, url=command.url)

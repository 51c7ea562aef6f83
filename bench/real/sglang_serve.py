"""SGLang's own server on a CPU: what `python -m sglang.launch_server` does with the same flags, where some packages are absent.

Whatever it serves, SGLang imports kernels that are not published for CPUs (`sgl_kernel`, `cutlass`) and readers of pictures,
sounds, notebooks and file formats that a text model has no use for. Imports of these succeed here and yield names with nothing
behind them. To call one is a NotImplementedError, so that nothing is ever computed by a stand-in.

SGLang's processes are spawned and run this file too, as a module of another name: so what stands below is for all of them.
"""

import runpy
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NoReturn

ABSENT = {"IPython", "cutlass", "gguf", "sgl_kernel", "soundfile", "torchaudio", "torchvision"}


class Name(ModuleType):
    """A module, or anything in one, that is not there."""

    __version__ = "0"

    def __getattr__(self, name: str) -> "Name":
        if name.startswith("__"):
            raise AttributeError(name)
        return Name(f"{self.__name__}.{name}")

    def __call__(self, *_: object, **__: object) -> NoReturn:
        raise NotImplementedError(f"{self.__name__} is not installed")


class Absent(MetaPathFinder, Loader):
    """Asked last, when nobody else knows a module."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in ABSENT else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return Name(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


sys.meta_path.append(Absent())

if __name__ == "__main__":
    runpy.run_module("sglang.launch_server", run_name="__main__")

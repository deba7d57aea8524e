"""What this machine has, what it lacks, and how to get it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from dtl.core.units import format_bytes

_LOOK_AT_TORCH = """
import json, torch
from torch.utils.cpp_extension import CUDA_HOME
print(json.dumps({
    "cuda": torch.version.cuda,
    "cuda_home": CUDA_HOME,
    "devices": [
        {"name": at.name, "memory": at.total_memory, "bf16": at.major >= 8}
        for at in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    ],
}))
"""


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `note` is worth knowing but stops nothing; only `missing` does."""

    state: Literal["ok", "note", "missing"]
    what: str
    fix: str = ""

    def __str__(self) -> str:
        line = f"{self.state:<8} {self.what}"
        return f"{line}; {self.fix}" if self.fix else line


def examine() -> Iterator[Finding]:
    """Every finding, cheap ones first; a fresh process looks at torch, so it cannot stop us."""
    yield _python()
    yield from _packages()
    yield from _extras()
    yield from _machine()
    yield from _devices()
    yield from _builders()
    yield from _folders()


def _python() -> Finding:
    return Finding("ok", f"Python {platform.python_version()} ({sys.executable})")


def _packages() -> Iterator[Finding]:
    """Every package that dtl needs, against the bounds of its own metadata."""
    for requirement in _requirements():
        if "extra ==" not in str(requirement.marker or ""):
            yield _package(requirement)


def _requirements() -> list[Any]:
    from packaging.requirements import Requirement

    try:
        return [Requirement(line) for line in metadata.requires("dtl") or ()]
    except metadata.PackageNotFoundError:
        return []


def _package(requirement: Any) -> Finding:
    fix = f"pip install '{requirement.name}{requirement.specifier}'"
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Finding("missing", f"{requirement.name} is not installed", fix)
    if not requirement.specifier.contains(version, prereleases=True):
        wanted = f"dtl needs {requirement.specifier}"
        return Finding("missing", f"{requirement.name} {version}, but {wanted}", fix)
    return Finding("ok", f"{requirement.name} {version}")


def _extras() -> Iterator[Finding]:
    """Extras for users; those for the project's own tests are not looked at."""
    needs: dict[str, list[Any]] = {}
    for requirement in _requirements():
        _, equals, extra = str(requirement.marker or "").partition("extra == ")
        if equals and extra.strip("\"'") not in ("test", "dev"):
            needs.setdefault(extra.strip("\"'"), []).append(requirement)
    for extra, requirements in sorted(needs.items()):
        lacking = [need.name for need in requirements if _package(need).state != "ok"]
        if lacking:
            what = f"extra {extra}: {', '.join(lacking)} not installed or of another version"
            yield Finding("note", what, f"if you need it: pip install 'dtl[{extra}]'")
        else:
            yield Finding("ok", f"extra {extra}")


def _machine() -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    cores = f"{psutil.cpu_count()} cores"
    size = f"{format_bytes(memory.total)} of memory, {format_bytes(memory.available)} free"
    yield Finding("ok", f"{platform.system()} {platform.machine()}, {cores}, {size}")
    if shutil.which("sbatch"):
        yield Finding("ok", "Slurm (sbatch is on PATH)")


def _devices() -> Iterator[Finding]:
    """GPUs as torch sees them."""
    seen = _seen_by_torch()
    if isinstance(seen, str):
        yield Finding("missing", f"torch does not start ({seen})", "install torch again")
        return
    for number, device in enumerate(seen["devices"]):
        bf16 = "bf16" if device["bf16"] else "no bf16"
        memory = format_bytes(device["memory"])
        yield Finding("ok", f"GPU {number}: {device['name']}, {memory}, {bf16}")
    if seen["devices"] and not seen["cuda_home"]:
        fix = "install the CUDA toolkit and set CUDA_HOME"
        yield Finding("note", "no CUDA toolkit, so DeepSpeed cannot build its GPU operators", fix)
    if not seen["devices"]:
        yield _no_gpu(seen["cuda"])


def _no_gpu(cuda: str | None) -> Finding:
    if shutil.which("nvidia-smi") and cuda is None:
        fix = "install the CUDA build of torch (see pytorch.org)"
        return Finding("missing", "there is an NVIDIA driver, but this torch is for CPU only", fix)
    if shutil.which("nvidia-smi"):
        fix = f"update the driver for CUDA {cuda}, or check CUDA_VISIBLE_DEVICES"
        return Finding("missing", "there is an NVIDIA driver, but torch sees no GPU", fix)
    return Finding("note", "no GPU: dtl trains on the CPU")


def _seen_by_torch() -> dict[str, Any] | str:
    """What torch reports, or the last line of its complaint."""
    try:
        looked = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _LOOK_AT_TORCH],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "no answer within 120 s"
    if looked.returncode:
        return (looked.stderr.strip().splitlines() or [f"exit code {looked.returncode}"])[-1]
    seen: dict[str, Any] = json.loads(looked.stdout.splitlines()[-1])
    return seen


def _builders() -> Iterator[Finding]:
    """What DeepSpeed needs to build its operators on first use."""
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    if compiler:
        yield Finding("ok", f"C++ compiler {compiler}")
    else:
        what = "no C++ compiler: DeepSpeed cannot start on CPU, so dtl plans ZeRO 0 there"
        yield Finding("missing", what, "install g++ (on Debian: apt install g++)")
    ninja = shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))
    if ninja:
        yield Finding("ok", f"ninja {ninja}")
    else:
        yield Finding(
            "missing", "ninja is not found, DeepSpeed builds with it", "pip install ninja"
        )


def _folders() -> Iterator[Finding]:
    """Where models, data and builds are cached."""
    home = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    hub = Path(os.environ.get("HF_HOME", home / "huggingface")).expanduser()
    builds = Path(os.environ.get("TORCH_EXTENSIONS_DIR", home / "torch_extensions")).expanduser()
    own = Path(os.environ.get("DTL_CACHE", "~/.cache/dtl")).expanduser()
    yield _folder("model and data cache", hub, variable="HF_HOME")
    yield _folder("dtl cache", own, variable="DTL_CACHE")
    yield _folder("build cache", builds, variable="TORCH_EXTENSIONS_DIR")
    for lock in sorted(builds.glob("**/lock")):
        what = f"{lock} is held by a build that runs, or was left by one that was killed"
        yield Finding("note", what, "if no build runs, remove it, or the next build waits forever")
    if os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE"):
        yield Finding("note", "offline mode is on: models come from the cache or local folders")


def _folder(what: str, folder: Path, *, variable: str) -> Finding:
    """Whether the folder, or the nearest one above it that exists, can be written to."""
    there = next(at for at in (folder, *folder.parents) if at.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        fix = f"set {variable} to a folder that you may write to"
        return Finding("missing", f"{what} {folder} cannot be written to", fix)
    free = format_bytes(shutil.disk_usage(there).free)
    return Finding("ok", f"{what} {folder}, {free} free on its disk")

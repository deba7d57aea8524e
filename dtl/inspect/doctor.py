"""Examine this machine: what is installed, what is missing, and how to get it."""

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

_TORCH_PROBE = """
import json, torch
from torch.utils.cpp_extension import CUDA_HOME
print(json.dumps({
    "cuda": torch.version.cuda,
    "cuda_home": CUDA_HOME,
    "devices": [
        {"name": gpu.name, "memory": gpu.total_memory, "bf16": gpu.major >= 8}
        for gpu in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    ],
}))
"""


@dataclass(frozen=True)
class Finding:
    """One result. `note` is worth knowing but prevents nothing; only `missing` does."""

    state: Literal["ok", "note", "missing"]
    text: str
    fix: str = ""

    def __str__(self) -> str:
        line = f"{self.state:<8} {self.text}"
        return f"{line}. Fix: {self.fix}" if self.fix else line


def examine() -> Iterator[Finding]:
    """Yield every finding, cheap ones first; torch is imported in a process of its own."""
    yield _check_python()
    yield from _check_packages()
    yield from _check_extras()
    yield from _check_machine()
    yield from _check_devices()
    yield from _check_build_tools()
    yield from _check_folders()


def _check_python() -> Finding:
    return Finding("ok", f"Python {platform.python_version()} ({sys.executable})")


def _check_packages() -> Iterator[Finding]:
    """Compare every package that dtl needs with the versions that its metadata requires."""
    for requirement in _read_requirements():
        if "extra ==" not in str(requirement.marker or ""):
            yield _check_package(requirement)


def _read_requirements() -> list[Any]:
    from packaging.requirements import Requirement

    try:
        return [Requirement(line) for line in metadata.requires("dtl") or ()]
    except metadata.PackageNotFoundError:
        return []


def _check_package(requirement: Any) -> Finding:
    fix = f"pip install '{requirement.name}{requirement.specifier}'"
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Finding("missing", f"{requirement.name} is not installed", fix)
    if not requirement.specifier.contains(version, prereleases=True):
        text = f"{requirement.name} {version} (expected {requirement.specifier})"
        return Finding("missing", text, fix)
    return Finding("ok", f"{requirement.name} {version}")


def _check_extras() -> Iterator[Finding]:
    """Check the extras for users, not those for the tests of this project."""
    by_extra: dict[str, list[Any]] = {}
    for requirement in _read_requirements():
        _, equals, extra = str(requirement.marker or "").partition("extra == ")
        if equals and extra.strip("\"'") not in ("test", "dev"):
            by_extra.setdefault(extra.strip("\"'"), []).append(requirement)
    for extra, requirements in sorted(by_extra.items()):
        missing = [one.name for one in requirements if _check_package(one).state != "ok"]
        if missing:
            text = f"extra {extra}: {', '.join(missing)} not installed or of another version"
            yield Finding("note", text, f"if you need it: pip install 'dtl[{extra}]'")
        else:
            yield Finding("ok", f"extra {extra}")


def _check_machine() -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    cores = f"{psutil.cpu_count()} cores"
    size = f"{format_bytes(memory.total)} of memory, {format_bytes(memory.available)} free"
    yield Finding("ok", f"{platform.system()} {platform.machine()}, {cores}, {size}")
    if shutil.which("sbatch"):
        yield Finding("ok", "Slurm (sbatch is on PATH)")


def _check_devices() -> Iterator[Finding]:
    """Check the GPUs that torch finds."""
    report = _query_torch()
    if isinstance(report, str):
        yield Finding("missing", f"torch cannot be imported ({report})", "install torch again")
        return
    for number, device in enumerate(report["devices"]):
        bf16 = "bf16" if device["bf16"] else "no bf16"
        memory = format_bytes(device["memory"])
        yield Finding("ok", f"GPU {number}: {device['name']}, {memory}, {bf16}")
    if report["devices"] and not report["cuda_home"]:
        fix = "install the CUDA toolkit and set CUDA_HOME"
        yield Finding("note", "no CUDA toolkit: DeepSpeed cannot build its GPU operators", fix)
    if not report["devices"]:
        yield _explain_missing_gpu(report["cuda"])


def _explain_missing_gpu(cuda: str | None) -> Finding:
    if shutil.which("nvidia-smi") and cuda is None:
        fix = "install the CUDA build of torch (see pytorch.org)"
        return Finding("missing", "there is an NVIDIA driver, but this torch is for CPU only", fix)
    if shutil.which("nvidia-smi"):
        fix = f"update the driver for CUDA {cuda}, or check CUDA_VISIBLE_DEVICES"
        return Finding("missing", "there is an NVIDIA driver, but torch finds no GPU", fix)
    return Finding("note", "no GPU: dtl trains on the CPU")


def _query_torch() -> dict[str, Any] | str:
    """Return what torch reports, or the last line of its error."""
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _TORCH_PROBE],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "no answer within 120 s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def _check_build_tools() -> Iterator[Finding]:
    """Check what DeepSpeed needs to build its operators on first use."""
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    if compiler:
        yield Finding("ok", f"C++ compiler {compiler}")
    else:
        text = "no C++ compiler: DeepSpeed cannot start on a CPU, so dtl plans ZeRO 0 there"
        yield Finding("missing", text, "install g++ (on Debian: apt install g++)")
    ninja = shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))
    if ninja:
        yield Finding("ok", f"ninja {ninja}")
    else:
        yield Finding("missing", "no ninja, which DeepSpeed builds with", "pip install ninja")


def _check_folders() -> Iterator[Finding]:
    """Check the folders where models, data and builds are cached."""
    home = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    hub = Path(os.environ.get("HF_HOME", home / "huggingface")).expanduser()
    builds = Path(os.environ.get("TORCH_EXTENSIONS_DIR", home / "torch_extensions")).expanduser()
    own = Path(os.environ.get("DTL_CACHE", "~/.cache/dtl")).expanduser()
    yield _check_folder("model and data cache", hub, variable="HF_HOME")
    yield _check_folder("dtl cache", own, variable="DTL_CACHE")
    yield _check_folder("build cache", builds, variable="TORCH_EXTENSIONS_DIR")
    for lock in sorted(builds.glob("**/lock")):
        text = f"{lock} is held by a running build, or was left by one that was killed"
        yield Finding(
            "note", text, "if no build is running, remove it: the next build waits for it"
        )
    if os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE"):
        yield Finding("note", "offline mode is on: models come from the cache or local folders")


def _check_folder(name: str, folder: Path, *, variable: str) -> Finding:
    """Check that the folder, or the nearest existing one above it, is writable."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        fix = f"set {variable} to a folder that you may write to"
        return Finding("missing", f"{name} {folder} is not writable", fix)
    free = format_bytes(shutil.disk_usage(existing).free)
    return Finding("ok", f"{name} {folder}, {free} free on its disk")

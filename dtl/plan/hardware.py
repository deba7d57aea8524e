"""Detect the hardware of this machine: devices, memory, compiler and free disk space."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from dtl.plan.records import Hardware

OOM_KILL_FILES = (
    "/sys/fs/cgroup/memory.events",
    "/sys/fs/cgroup/memory/memory.oom_control",
    "/proc/vmstat",
)


def detect_hardware() -> Hardware:
    """Return the devices of this machine, their memory, and whether DeepSpeed can build here.

    CUDA devices are counted through NVML, so that this process may still fork.
    """
    import psutil

    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import torch

    has_compiler = _has_compiler()
    gpus = torch.cuda.device_count()
    if gpus == 0:
        cores = os.cpu_count() or 1
        memory = psutil.virtual_memory().total
        return Hardware(
            "cpu",
            cores,
            memory,
            f"{cores} CPU cores",
            supports_bf16=True,
            has_compiler=has_compiler,
        )
    name, memory, capability = _query_first_gpu()
    return Hardware(
        "cuda", gpus, memory, name, supports_bf16=capability >= 8, has_compiler=has_compiler
    )


def node_hardware(*, gpus: int, gpu_gib: float, supports_bf16: bool) -> Hardware:
    """Return the hardware of a node elsewhere: so many GPUs of so much memory, or, where `gpus` is
    0, CPUs like those of this machine."""
    import psutil

    has_compiler = _has_compiler()
    if gpus:
        memory = int(gpu_gib * 2**30)
        return Hardware(
            "cuda", gpus, memory, f"GPU of {gpu_gib:g} GiB", supports_bf16, has_compiler
        )
    memory, cores = psutil.virtual_memory().total, os.cpu_count() or 1
    return Hardware(
        "cpu", cores, memory, "CPU cores", supports_bf16=True, has_compiler=has_compiler
    )


def free_disk_bytes(folder: str) -> int:
    """Return the bytes that this user may still write to the disk of a folder, which need not
    exist yet."""
    path = Path(folder).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def count_oom_kills() -> int:
    """Return how many processes of this container, or else of this machine, the kernel has killed
    so far because main memory was full; 0 where it does not say."""
    for file in OOM_KILL_FILES:
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except OSError:
            continue
        for line in lines:
            key, _, number = line.partition(" ")
            if key == "oom_kill":
                return int(number)
    return 0


def _query_first_gpu() -> tuple[str, int, int]:
    """Return name, bytes and major compute capability, without starting CUDA in this process."""
    import subprocess

    fields = "name,memory.total,compute_cap"
    try:
        output = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        ).stdout
        name, mebibytes, capability = output.splitlines()[0].rsplit(",", 2)
        return name.strip(), int(mebibytes) * 2**20, int(capability.split(".")[0])
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return "CUDA device", 0, 0


def _has_compiler() -> bool:
    """Whether a C++ compiler and ninja are installed."""
    has_ninja = (
        shutil.which("ninja") is not None or (Path(sys.executable).parent / "ninja").exists()
    )
    return has_ninja and shutil.which(os.environ.get("CXX", "g++")) is not None

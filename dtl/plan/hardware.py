"""What this machine offers."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from dtl.plan.records import Hardware


def this_machine() -> Hardware:
    """Devices, their memory, and whether DeepSpeed can build its parts here.

    CUDA is asked through NVML, so that this process may still fork.
    """
    import psutil

    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import torch

    compiler = shutil.which(os.environ.get("CXX", "g++")) is not None and _ninja()
    devices = torch.cuda.device_count()
    if devices == 0:
        cores = os.cpu_count() or 1
        memory = psutil.virtual_memory().total
        return Hardware("cpu", cores, memory, f"{cores} CPU cores", bf16=True, compiler=compiler)
    name, memory, capability = _first_gpu()
    return Hardware("cuda", devices, memory, name, bf16=capability >= 8, compiler=compiler)


def node(*, gpus: int, gpu_gib: float, bf16: bool) -> Hardware:
    """A machine that is not this one: so many GPUs of so much memory, or else CPUs like ours."""
    import psutil

    compiler = shutil.which(os.environ.get("CXX", "g++")) is not None and _ninja()
    if gpus:
        memory = int(gpu_gib * 2**30)
        return Hardware("cuda", gpus, memory, f"GPU of {gpu_gib:g} GiB", bf16, compiler)
    memory, cores = psutil.virtual_memory().total, os.cpu_count() or 1
    return Hardware("cpu", cores, memory, "CPU cores", bf16=True, compiler=compiler)


def disk_free(folder: str) -> int:
    """Bytes left for this user on the disk that a folder is on, or will be made on."""
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _first_gpu() -> tuple[str, int, int]:
    """Name, bytes and major compute capability, read without starting CUDA in this process."""
    import subprocess

    fields = "name,memory.total,compute_cap"
    try:
        printed = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        ).stdout
        name, mebibytes, capability = printed.splitlines()[0].rsplit(",", 2)
        return name.strip(), int(mebibytes) * 2**20, int(capability.split(".")[0])
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return "CUDA device", 0, 0


def _ninja() -> bool:
    import sys

    return shutil.which("ninja") is not None or (Path(sys.executable).parent / "ninja").exists()


def memory_kills() -> int:
    """Processes of this container, or else of this machine, that the kernel has killed so far for
    want of main memory; 0 where it does not say."""
    for file, name in (
        ("/sys/fs/cgroup/memory.events", "oom_kill"),
        ("/sys/fs/cgroup/memory/memory.oom_control", "oom_kill"),
        ("/proc/vmstat", "oom_kill"),
    ):
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except OSError:
            continue
        for line in lines:
            key, _, number = line.partition(" ")
            if key == name:
                return int(number)
    return 0

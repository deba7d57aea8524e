"""Detect the hardware of this machine: devices, memory, compiler and free disk space."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from dtl.core.errors import DtlError
from dtl.core.process_env import count_cores
from dtl.plan.main_memory import main_memory_bytes
from dtl.plan.records import Hardware

BF16_CAPABILITY = 8  # major compute capability of the first GPUs with bf16 arithmetic
PROBE_SECONDS = 120
# Run in another process, because it initializes CUDA.
GPU_PROBE = """
import json, torch
gpus = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
print(json.dumps([[gpu.name, gpu.total_memory, gpu.major] for gpu in gpus]))
"""


def detect_hardware() -> Hardware:
    """Return the devices of this machine, their memory, and whether DeepSpeed can build here.

    CUDA is not initialized. Raises DtlError where the memory of the GPUs cannot be read.
    """
    gpus, host_bytes = count_gpus(), main_memory_bytes()
    if gpus == 0:
        cores = count_cores()
        return Hardware(
            "cpu",
            cores,
            host_bytes,
            f"{cores} CPU cores",
            supports_bf16=True,
            has_compiler=has_compiler(),
            host_memory_bytes=host_bytes,
        )
    name, memory_bytes, capability = _query_gpus()
    return Hardware(
        "cuda",
        gpus,
        memory_bytes,
        name,
        supports_bf16=capability >= BF16_CAPABILITY,
        has_compiler=has_compiler(),
        host_memory_bytes=host_bytes,
    )


def node_hardware(
    *, gpus: int, gpu_gib: float | None, supports_bf16: bool, host_bytes: int | None = None
) -> Hardware:
    """Return the hardware of a node elsewhere: so many GPUs of so much memory, or, where `gpus` is
    0, CPUs like those of this machine. `host_bytes`: main memory of the node; None: unknown."""
    if gpus:
        assert gpu_gib is not None, "a site with GPUs names their memory"
        return Hardware(
            "cuda",
            gpus,
            int(gpu_gib * 2**30),
            f"GPU of {gpu_gib:g} GiB",
            supports_bf16,
            has_compiler=has_compiler(),
            host_memory_bytes=host_bytes,
        )
    memory_bytes = host_bytes or main_memory_bytes()
    return Hardware(
        "cpu",
        count_cores(),
        memory_bytes,
        "CPU cores",
        supports_bf16=True,
        has_compiler=has_compiler(),
        host_memory_bytes=memory_bytes,
    )


def count_gpus() -> int:
    """Return the GPUs that this process may use. They are counted through NVML where that works,
    which does not initialize CUDA, so that this process may still fork."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import torch

    return torch.cuda.device_count()


def free_disk_bytes(folder: str) -> int:
    """Return the bytes that this user may still write to the disk of a folder, which need not
    exist yet."""
    path = Path(folder).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def has_compiler() -> bool:
    """Whether a C++ compiler and ninja are installed, with which DeepSpeed builds its operators."""
    has_ninja = (
        shutil.which("ninja") is not None or (Path(sys.executable).parent / "ninja").exists()
    )
    return has_ninja and shutil.which(os.environ.get("CXX", "g++")) is not None


def _query_gpus() -> tuple[str, int, int]:
    """Return the name of the first GPU, and the least bytes and major compute capability of all."""
    gpus = _query_driver() or _query_torch()
    if not gpus:
        raise DtlError.of(
            "layout",
            "the memory of the GPUs cannot be read: neither nvidia-smi nor torch can access them",
            "check the driver with `dtl doctor`, or set CUDA_VISIBLE_DEVICES= to train on the CPU",
        )
    return gpus[0][0], min(gpu[1] for gpu in gpus), min(gpu[2] for gpu in gpus)


def _query_driver() -> list[tuple[str, int, int]]:
    """Return name, bytes and major compute capability of the visible GPUs, by nvidia-smi; empty
    where it does not know them, as on AMD GPUs and of parts of a GPU (MIG)."""
    fields = "name,memory.total,compute_cap,mig.mode.current"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        command.append(f"--id={visible}")
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        rows = [line.rsplit(",", 3) for line in done.stdout.splitlines()]
        if any(mig_mode.strip() == "Enabled" for *_, mig_mode in rows):
            return []
        return [
            (name.strip(), int(mebibytes) * 2**20, int(capability.split(".")[0]))
            for name, mebibytes, capability, _ in rows
        ]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []


def _query_torch() -> list[tuple[str, int, int]]:
    """Return the same by torch, in another process."""
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", GPU_PROBE],
            capture_output=True,
            text=True,
            check=True,
            timeout=PROBE_SECONDS,
        )
        return [(name, size, major) for name, size, major in json.loads(done.stdout)]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []

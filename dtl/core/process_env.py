"""The environment variables by which a launcher tells a process its rank, and free ports."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, MutableMapping

SLURM_TASKS = "DTL_SLURM_TASKS_PER_NODE"  # ranks on each node, if srun starts the ranks
TORCHRUN_TIMEOUT_SECONDS = 3600  # how long torchrun waits for the ranks to save
DEFAULT_PORT = 29500  # torchrun's own
JOB_PORTS = range(12_000, 32_000)  # below the ephemeral ports of the system


def launcher_environment(device: str) -> dict[str, str]:
    """Return the variables that a launcher and its ranks need on a device ("cpu" or "cuda")."""
    environment = {
        "PYTHONUNBUFFERED": "1",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(TORCHRUN_TIMEOUT_SECONDS),
    }
    if device == "cpu":
        environment |= {"ACCELERATE_USE_CPU": "true", "DS_ACCELERATOR": "cpu"}
    return environment


def set_rank_from_slurm(environment: MutableMapping[str, str]) -> None:
    """Set the variables of torchrun from those of srun.

    Only if the job script says that its tasks are ranks: in an interactive job they are not.
    """
    if SLURM_TASKS not in environment or "RANK" in environment:
        return
    sees_one_gpu = len(environment.get("CUDA_VISIBLE_DEVICES", "0,1").split(",")) == 1
    environment["RANK"] = environment["SLURM_PROCID"]
    environment["WORLD_SIZE"] = environment["SLURM_NTASKS"]
    # A task that sees only its own GPU has it as device 0.
    environment["LOCAL_RANK"] = "0" if sees_one_gpu else environment["SLURM_LOCALID"]
    environment["LOCAL_WORLD_SIZE"] = environment[SLURM_TASKS]


def get_local_rank(environment: Mapping[str, str]) -> int:
    """Return the rank of the process on its node, from 0."""
    is_slurm = SLURM_TASKS in environment
    return int(environment.get("SLURM_LOCALID" if is_slurm else "LOCAL_RANK", "0"))


def threads_per_process(processes: int) -> int:
    """Return the number of CPU threads of one process: its share of the cores that this process
    may use, at least 1."""
    return max(1, count_cores() // processes)


def count_cores() -> int:
    """Return the number of CPU cores that this process may use: under Slurm, those of its job."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def find_free_port() -> int:
    """Return a port of this machine that no process listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

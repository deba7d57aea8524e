"""The environment variables by which a launcher tells a process its rank, and free ports."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, MutableMapping

SLURM_TASKS = "DTL_SLURM_TASKS_PER_NODE"  # srun starts the ranks: so many on each node


SAVING_SECONDS = 3600  # so long torchrun waits for the ranks to save


def surroundings(device: str) -> dict[str, str]:
    """What a launcher and its ranks want in their environment, wherever they run."""
    environment = {
        "PYTHONUNBUFFERED": "1",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SAVING_SECONDS),
    }
    if device == "cpu":
        environment |= {"ACCELERATE_USE_CPU": "true", "DS_ACCELERATOR": "cpu"}
    return environment


def take_slurm_rank(environment: MutableMapping[str, str]) -> None:
    """What torchrun would have said of this process, from what srun says of its task.

    Only where the job says that its tasks are ranks: in an interactive job they are not.
    """
    if SLURM_TASKS not in environment or "RANK" in environment:
        return
    alone = len(environment.get("CUDA_VISIBLE_DEVICES", "0,1").split(",")) == 1
    environment["RANK"] = environment["SLURM_PROCID"]
    environment["WORLD_SIZE"] = environment["SLURM_NTASKS"]
    # A task that sees one GPU only finds its own at number 0.
    environment["LOCAL_RANK"] = "0" if alone else environment["SLURM_LOCALID"]
    environment["LOCAL_WORLD_SIZE"] = environment[SLURM_TASKS]


def number_on_node(environment: Mapping[str, str]) -> int:
    """Which of its node's processes this is, from 0."""
    of_task = SLURM_TASKS in environment
    return int(environment.get("SLURM_LOCALID" if of_task else "LOCAL_RANK", "0"))


def threads(processes: int) -> int:
    """CPU threads of one process: the cores shared out."""
    return max(1, (os.cpu_count() or 1) // processes)


def free_port() -> int:
    """A port on this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

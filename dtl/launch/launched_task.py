"""Tasks that srun, mpirun or jsrun has started: read their rank, and where they meet."""

from __future__ import annotations

import re
import socket
import subprocess
import zlib
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from dtl.core.errors import DtlError
from dtl.core.process_env import DEFAULT_PORT, JOB_PORTS, SLURM_TASKS

LAUNCHER = "DTL_LAUNCHER"  # variable: the launcher whose tasks are the ranks
# Launcher: its variables of size, rank, local rank and local size. An MPI inside a Slurm job comes
# first, because srun may have started its daemons.
MPI_VARIABLES = {
    "mpirun": (
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "mpirun (MVAPICH)": (
        "MV2_COMM_WORLD_SIZE",
        "MV2_COMM_WORLD_RANK",
        "MV2_COMM_WORLD_LOCAL_RANK",
        "MV2_COMM_WORLD_LOCAL_SIZE",
    ),
    "jsrun": (
        "JSM_NAMESPACE_SIZE",
        "JSM_NAMESPACE_RANK",
        "JSM_NAMESPACE_LOCAL_RANK",
        "JSM_NAMESPACE_LOCAL_SIZE",
    ),
    "mpiexec (Hydra)": ("PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    "mpiexec (PALS)": ("PMI_SIZE", "PMI_RANK", "PMI_LOCAL_RANK", "PMI_LOCAL_SIZE"),
}
# Variables of which the first that is set identifies the tasks of one launch.
LAUNCH_IDS = ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "LSB_JOBID", "PBS_JOBID")
SET_BY_HAND = "export MASTER_ADDR and MASTER_PORT: an address of the machine of rank 0, a free port"


@dataclass(frozen=True)
class LaunchedTask:
    """One of the tasks of a launcher, as it has described it."""

    launcher: str
    world_size: int
    rank: int
    local_rank: int
    local_world_size: int


def set_rank_from_launcher(environment: MutableMapping[str, str]) -> None:
    """Set the variables of torchrun from those of srun, mpirun or jsrun, where one of these has
    started several tasks, so that they are the ranks of one run.

    Raises DtlError where they cannot meet: each would be a run of its own.
    """
    task = find_launched_task(environment)
    if task is None:
        return
    if not _names_rendezvous(environment):
        environment["MASTER_ADDR"] = _find_master_address(task, environment)
        environment["MASTER_PORT"] = str(_choose_port(environment))
    sees_one_gpu = len(environment.get("CUDA_VISIBLE_DEVICES", "0,1").split(",")) == 1
    environment["RANK"], environment["WORLD_SIZE"] = str(task.rank), str(task.world_size)
    # A task that sees only its own GPU has it as device 0.
    environment["LOCAL_RANK"] = "0" if sees_one_gpu else str(task.local_rank)
    environment["LOCAL_WORLD_SIZE"] = str(task.local_world_size)
    environment[LAUNCHER] = task.launcher


def refuse_many_tasks(environment: Mapping[str, str]) -> None:
    """Raise DtlError where this command, which starts its processes itself, is one of several tasks
    of a launcher."""
    task = find_launched_task(environment)
    size = environment.get("WORLD_SIZE", "1") if "RANK" in environment else "1"
    if task is None and size in ("", "1"):
        return
    launcher = task.launcher if task is not None else "torchrun"
    raise DtlError.of(
        launcher,
        f"{task.world_size if task else size} tasks were started, each of which would start the "
        "same run",
        "start one task; or have the tasks be the ranks of the run: python -m dtl.launch.worker "
        "train CONFIG",
    )


def find_launched_task(environment: Mapping[str, str]) -> LaunchedTask | None:
    """Return the task that this process is; None where it is the only one, or has its RANK already.
    Raises DtlError where there are several, and the variables do not say which of them is on which
    node."""
    if "RANK" in environment or SLURM_TASKS in environment:
        return None
    unplaced = None
    for launcher, names in MPI_VARIABLES.items():
        values = [environment.get(name, "") for name in names]
        if all(map(str.isdigit, values)):
            found = LaunchedTask(launcher, *map(int, values))
            return found if found.world_size > 1 else None
        if values[0].isdigit() and int(values[0]) > 1 and unplaced is None:
            unplaced = launcher, names
    task = _find_slurm_task(environment)
    if task is None and unplaced is not None:
        launcher, names = unplaced
        raise DtlError.of(
            launcher,
            f"{environment[names[0]]} tasks were started, and "
            f"{', '.join(name for name in names if name not in environment)} are not set",
            "start the run with torchrun, or set RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, "
            "MASTER_ADDR and MASTER_PORT",
        )
    return task


def _find_slurm_task(environment: Mapping[str, str]) -> LaunchedTask | None:
    """Return the task of srun. The shell of a batch script or of `srun --pty` is none."""
    size = environment.get("SLURM_STEP_NUM_TASKS", "")
    if not size.isdigit() or int(size) < 2 or "SLURM_PTY_PORT" in environment:
        return None
    tasks = expand_tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    if len(set(tasks)) != 1 or sum(tasks) != int(size):
        raise DtlError.of(
            "srun",
            f"{size} tasks were started, {tasks} on the nodes (expected the same on each)",
            "set --ntasks-per-node",
        )
    return LaunchedTask(
        "srun",
        int(size),
        int(environment["SLURM_PROCID"]),
        int(environment["SLURM_LOCALID"]),
        tasks[0],
    )


def expand_tasks_per_node(text: str) -> list[int]:
    """Return the number of tasks of each node: "2(x3),1" is [2, 2, 2, 1]."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(count) for count, times in found for _ in range(int(times or 1))]


def first_host(hosts: str) -> str:
    """Return the first name of a list of hosts as Slurm writes it: "n[03-05,7],m" is n03."""
    name = re.match(r"(?:[^,\[]|\[[^]]*\])*", hosts.strip())
    return re.sub(r"\[([^],-]*)[^]]*\]", r"\1", name[0]) if name else ""


def _names_rendezvous(environment: Mapping[str, str]) -> bool:
    return bool(environment.get("MASTER_ADDR")) and bool(environment.get("MASTER_PORT"))


def _find_master_address(task: LaunchedTask, environment: Mapping[str, str]) -> str:
    """Return an address of the machine of rank 0. Raises DtlError where it is not known."""
    if environment.get("MASTER_ADDR"):
        return environment["MASTER_ADDR"]
    if task.world_size == task.local_world_size:
        return "127.0.0.1"
    host = _find_first_host(task, environment)
    if host is None:
        raise DtlError.of(
            task.launcher,
            f"{task.world_size} tasks were started on several machines, and no variable names the "
            "machine of rank 0",
            SET_BY_HAND,
        )
    is_there = task.rank < task.local_world_size
    for name in (host, host.partition(".")[0], _query_node_address(host)):
        address = _resolve(name)
        # On its own machine, the name of a host may stand for a loopback address.
        if address and (is_there or not address.startswith("127.")):
            return address
    raise DtlError.of(
        task.launcher,
        f"{host}, the machine of rank 0, has no address that other machines can connect to",
        SET_BY_HAND,
    )


def _find_first_host(task: LaunchedTask, environment: Mapping[str, str]) -> str | None:
    """Return the first machine of the job step or the job."""
    for name in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"):
        is_mpi_daemon = name == "SLURM_STEP_NODELIST" and task.launcher != "srun"
        if environment.get(name) and not is_mpi_daemon:
            return first_host(environment[name])
    hosts = environment.get("LSB_MCPU_HOSTS", "").split()[::2]
    if task.launcher == "jsrun":
        hosts = hosts[1:]  # the first one is the launch node, which has no task
    return hosts[0] if hosts else None


def _query_node_address(host: str) -> str:
    """Return the address of a node as Slurm knows it, "" where it does not answer."""
    try:
        done = subprocess.run(
            ["scontrol", "show", "node", host], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    found = re.search(r"NodeAddr=(\S+)", done.stdout)
    return found[1] if found else ""


def _resolve(host: str) -> str:
    """Return the IPv4 address of a host; "" where it has none."""
    try:
        return str(socket.getaddrinfo(host, None, socket.AF_INET)[0][4][0]) if host else ""
    except OSError:
        return ""


def _choose_port(environment: Mapping[str, str]) -> int:
    """Return a port that all tasks of this launch choose, and those of another one rarely."""
    if environment.get("MASTER_PORT", "").isdigit():
        return int(environment["MASTER_PORT"])
    launch = next((environment[name] for name in LAUNCH_IDS if environment.get(name)), None)
    if "SLURM_JOB_ID" in environment:
        launch = f"{environment['SLURM_JOB_ID']}.{environment.get('SLURM_STEP_ID')}"
    if launch is None:
        return DEFAULT_PORT
    return JOB_PORTS[zlib.crc32(launch.encode()) % len(JOB_PORTS)]

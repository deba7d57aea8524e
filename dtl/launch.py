"""From a run folder to the command that starts the processes of this node."""

from __future__ import annotations

import os
import shlex
import socket
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dtl.errors import DtlError
from dtl.run_folder import RunFolder
from dtl.stop import HANDED_ON


@dataclass(frozen=True)
class Command:
    """What to start, and what its environment has beside ours."""

    argv: tuple[str, ...]
    environment: dict[str, str]
    log: str = "launcher.log"  # its name in the run's logs

    def shell(self) -> str:
        """The same as one line for a shell."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*settings, shlex.join(self.argv)])


SLURM_TASKS = "DTL_SLURM_TASKS_PER_NODE"  # srun starts the ranks: so many on each node
SAVING_SECONDS = 3600  # so long torchrun waits for the ranks to save


PORT = 29500  # torchrun's own, where several machines must agree on one without a word


@dataclass(frozen=True)
class Machine:
    """One of the `machines` that share a run. `address`: of the first, as the others reach it."""

    number: int  # from 0
    machines: int
    address: str
    port: int = PORT


def machine_of(number: int, machines: int, master: str) -> Machine:
    """Which machine this is. `master`: HOST or HOST:PORT of the first. Raises DtlError."""
    if machines == 1:
        raise DtlError.of(
            "layout.nodes", "is 1, and one machine needs no launch", "use `dtl train`"
        )
    if number >= machines:
        raise DtlError.of(
            "--node-rank", f"there is no machine {number} of {machines}", "they count from 0"
        )
    address, _, port = master.partition(":")
    if not address or (port and not (port.isdigit() and 0 < int(port) < 65536)):
        raise DtlError.of(
            "--master", f"'{master}' is no HOST or HOST:PORT", "name the first machine"
        )
    try:
        socket.getaddrinfo(address, None)
    except OSError as fault:
        raise DtlError.of(
            "--master", f"{address} is not known here ({fault.strerror})", "give its IP address"
        ) from fault
    return Machine(number, machines, address, int(port) if port else PORT)


def command(folder: RunFolder) -> Command:
    """torchrun with the run's ranks, each running the worker on the run folder.

    Not `accelerate launch`: it starts the same torchrun, but without the two settings above.
    """
    layout = folder.plan.layout
    worker = ("run", str(folder.path.absolute()))
    alone = Machine(0, 1, "127.0.0.1", free_port())
    return _torchrun(worker, alone, ranks=layout.ranks, device=layout.device)


def command_on(
    machine: Machine, config: Path, overrides: Sequence[str], *, ranks: int, device: str
) -> Command:
    """torchrun with the ranks of one machine, each running the worker on the config."""
    worker = ("train", str(config.absolute()), *overrides)
    started = _torchrun(worker, machine, ranks=ranks, device=device)
    return replace(started, log=f"launcher-{machine.number}.log")


def _torchrun(worker: Sequence[str], machine: Machine, *, ranks: int, device: str) -> Command:
    environment = surroundings(device)
    if device == "cpu":
        environment["OMP_NUM_THREADS"] = str(threads(ranks))
    argv = [sys.executable, "-m", "torch.distributed.run"]
    argv += ["--nproc-per-node", str(ranks), "--signals-to-handle", HANDED_ON]
    if machine.machines > 1:
        argv += ["--nnodes", str(machine.machines), "--node-rank", str(machine.number)]
    argv += ["--master-addr", machine.address, "--master-port", str(machine.port)]
    return Command((*argv, "-m", "dtl.worker", *worker), environment)


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

"""From a run folder to the command that starts the processes of this node."""

from __future__ import annotations

import shlex
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dtl.core.errors import DtlError
from dtl.core.process_env import free_port, surroundings, threads
from dtl.core.signals import HANDED_ON
from dtl.run.folder import RunFolder


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
    return Command((*argv, "-m", "dtl.launch.worker", *worker), environment)

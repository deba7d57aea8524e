"""Build the command that starts the ranks of this node."""

from __future__ import annotations

import os
import shlex
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dtl.core.errors import DtlError
from dtl.core.process_env import (
    DEFAULT_PORT,
    find_free_port,
    launcher_environment,
    threads_per_process,
)
from dtl.core.signals import FORWARDED_BY_TORCHRUN
from dtl.run.folder import RunFolder


@dataclass(frozen=True)
class LaunchCommand:
    """A command to start, and the variables that it adds to this environment.

    `log_name`: name of the log of its output, in the run's logs.
    """

    argv: tuple[str, ...]
    environment: dict[str, str]
    log_name: str = "launcher.log"

    def to_shell(self) -> str:
        """Return the same as one line for a shell."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*settings, shlex.join(self.argv)])


@dataclass(frozen=True)
class Rendezvous:
    """This node among those of a run, in torchrun's terms.

    `master_addr`: of the first node, as the others connect to it.
    """

    node_rank: int
    nnodes: int
    master_addr: str
    master_port: int = DEFAULT_PORT


def parse_rendezvous(node_rank: int, nnodes: int, master: str) -> Rendezvous:
    """Check and return this node's place. `master`: HOST or HOST:PORT of the first node.

    Raises DtlError where a value is out of range or the host is unknown.
    """
    if nnodes == 1:
        raise DtlError.of(
            "layout.nodes", "is 1, and one machine needs no launch", "use `dtl train`"
        )
    if node_rank >= nnodes:
        raise DtlError.of(
            "--node-rank",
            f"there is no node {node_rank} of {nnodes}",
            f"use 0 to {nnodes - 1}",
        )
    address, _, port = master.partition(":")
    if not address or (port and not (port.isdigit() and 0 < int(port) < 65536)):
        raise DtlError.of(
            "--master", f"'{master}' is not HOST or HOST:PORT", "set the first machine"
        )
    try:
        socket.getaddrinfo(address, None)
    except OSError as error:
        raise DtlError.of(
            "--master", f"{address} is not known here ({error.strerror})", "use its IP address"
        ) from error
    return Rendezvous(node_rank, nnodes, address, int(port) if port else DEFAULT_PORT)


def build_command(folder: RunFolder) -> LaunchCommand:
    """Return the command that starts all ranks of a run, each on the run folder.

    A single process on a GPU needs no launcher. For several it is not `accelerate launch`, which
    starts the same torchrun but sets neither the signals nor the time that torchrun waits for a
    save.
    """
    layout = folder.plan.layout
    worker = ("run", str(folder.path.absolute()))
    if layout.world_size == 1 and layout.device == "cuda":
        argv = (sys.executable, "-m", "dtl.launch.worker", *worker)
        return LaunchCommand(argv, _environment(processes=1, device=layout.device))
    rendezvous = Rendezvous(0, 1, "127.0.0.1", find_free_port())
    return _torchrun_command(worker, rendezvous, processes=layout.world_size, device=layout.device)


def build_node_command(
    rendezvous: Rendezvous, config: Path, overrides: Sequence[str], *, processes: int, device: str
) -> LaunchCommand:
    """Return the command that starts the ranks of one node, each on the config."""
    worker = ("train", str(config.absolute()), *overrides)
    command = _torchrun_command(worker, rendezvous, processes=processes, device=device)
    return replace(command, log_name=f"launcher-{rendezvous.node_rank}.log")


def _torchrun_command(
    worker: Sequence[str], rendezvous: Rendezvous, *, processes: int, device: str
) -> LaunchCommand:
    argv = [sys.executable, "-m", "torch.distributed.run"]
    argv += ["--nproc-per-node", str(processes), "--signals-to-handle", FORWARDED_BY_TORCHRUN]
    if rendezvous.nnodes > 1:
        argv += ["--nnodes", str(rendezvous.nnodes), "--node-rank", str(rendezvous.node_rank)]
    argv += ["--master-addr", rendezvous.master_addr]
    argv += ["--master-port", str(rendezvous.master_port)]
    environment = _environment(processes=processes, device=device)
    return LaunchCommand((*argv, "-m", "dtl.launch.worker", *worker), environment)


def _environment(*, processes: int, device: str) -> dict[str, str]:
    environment = launcher_environment(device)
    # torchrun would set 1, and an offloaded optimizer would compute on one core.
    if "OMP_NUM_THREADS" not in os.environ:
        environment["OMP_NUM_THREADS"] = str(threads_per_process(processes))
    return environment

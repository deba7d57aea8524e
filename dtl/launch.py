"""From a run folder to the command that starts the processes of this node."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass

from dtl.plan import Layout
from dtl.run_folder import RunFolder
from dtl.stop import HANDED_ON


@dataclass(frozen=True)
class Command:
    """What to start, and what its environment has beside ours."""

    argv: tuple[str, ...]
    environment: dict[str, str]

    def shell(self) -> str:
        """The same as one line for a shell."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*settings, shlex.join(self.argv)])


SAVING_SECONDS = 3600  # so long torchrun waits for the ranks to save


def command(folder: RunFolder) -> Command:
    """torchrun with the run's ranks, each running the worker on the run folder.

    Not `accelerate launch`: it starts the same torchrun, but without the two settings above.
    """
    layout = folder.plan.layout
    environment = surroundings(layout)
    if layout.device == "cpu":
        environment["OMP_NUM_THREADS"] = str(threads(layout.processes))
    argv = [sys.executable, "-m", "torch.distributed.run"]
    argv += ["--nproc-per-node", str(layout.ranks), "--signals-to-handle", HANDED_ON]
    argv += ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    return Command((*argv, "-m", "dtl.worker", "run", str(folder.path.absolute())), environment)


def surroundings(layout: Layout) -> dict[str, str]:
    """What a launcher and its ranks want in their environment, wherever they run."""
    environment = {
        "PYTHONUNBUFFERED": "1",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SAVING_SECONDS),
    }
    if layout.device == "cpu":
        environment |= {"ACCELERATE_USE_CPU": "true", "DS_ACCELERATOR": "cpu"}
    return environment


def threads(processes: int) -> int:
    """CPU threads of one process: the cores shared out."""
    return max(1, (os.cpu_count() or 1) // processes)


def free_port() -> int:
    """A port on this machine that nobody listens on now."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

"""From a run folder to the command that starts the processes of this node."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass

from dtl.run_folder import RunFolder


@dataclass(frozen=True)
class Command:
    """What to start, and what its environment has beside ours."""

    argv: tuple[str, ...]
    environment: dict[str, str]

    def shell(self) -> str:
        """The same as one line for a shell."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*settings, shlex.join(self.argv)])


def command(folder: RunFolder) -> Command:
    """`accelerate launch` with the run's ranks, each running the worker on the run folder."""
    layout = folder.plan.layout
    environment = {"PYTHONUNBUFFERED": "1"}
    if layout.device == "cpu":
        environment["ACCELERATE_USE_CPU"] = "true"
        environment["DS_ACCELERATOR"] = "cpu"
        environment["OMP_NUM_THREADS"] = str(threads(layout.processes))
    argv = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--num_processes",
        str(layout.ranks),
    ]
    argv += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    argv += ["--main_process_port", str(free_port())]
    argv += ["--multi_gpu"] if layout.ranks > 1 else []
    return Command((*argv, "-m", "dtl.worker", "run", str(folder.path.absolute())), environment)


def threads(processes: int) -> int:
    """CPU threads of one process: the cores shared out."""
    return max(1, (os.cpu_count() or 1) // processes)


def free_port() -> int:
    """A port on this machine that nobody listens on now."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

"""Processes of an earlier job that still hold what this run needs: a port or a GPU."""

from __future__ import annotations

import errno
import os
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import psutil

from dtl.core.errors import RankFailed
from dtl.core.units import format_bytes, format_seconds

MAX_COMMAND = 120  # characters of a command line that are printed


@dataclass(frozen=True)
class GpuProcess:
    """A process that has memory of a GPU; `bytes`: None where the driver does not tell."""

    gpu: str
    pid: int
    bytes: int | None

    def __str__(self) -> str:
        size = "" if self.bytes is None else f", {format_bytes(self.bytes)}"
        return f"{self.gpu}: {describe_process(self.pid)}{size}"


def check_rendezvous_port(environment: Mapping[str, str]) -> None:
    """Raise RankFailed on rank 0 if another process listens at the port of the rendezvous. Under
    torchrun its own process listens there."""
    port = environment.get("MASTER_PORT", "")
    is_torchrun = environment.get("TORCHELASTIC_USE_AGENT_STORE", "").lower() == "true"
    if environment.get("RANK") == "0" and port.isdigit() and not is_torchrun:
        check_port(int(port))


def check_port(port: int) -> None:
    """Raise RankFailed, with the process that listens at a port, unless the port is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return  # torch reports it
    raise RankFailed.of(
        socket.gethostname(),
        f"port {port}, at which the processes of this run meet, is used by "
        f"{describe_port_user(port)}",
        "end that process if it belongs to an earlier job, or set another MASTER_PORT",
    )


def describe_port_user(port: int) -> str:
    """Return which process listens at a port of this machine, as far as this user may know."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.Error:
        connections = []
    owners = {
        connection.pid
        for connection in connections
        if connection.laddr and connection.laddr.port == port and connection.pid
    }
    names = ", ".join(describe_process(pid) for pid in sorted(owners))
    return names or "a process of another user"


def describe_process(pid: int) -> str:
    """Return the number, the user, the age and the command of a process."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            command = shlex.join(process.cmdline()) or process.name()
            age = format_seconds(time.time() - process.create_time())
            return f"process {pid} of {process.username()} ({command[:MAX_COMMAND]}, for {age})"
    except psutil.Error:
        return f"process {pid}"


def find_gpu_processes(gpus: Sequence[str] = ()) -> list[GpuProcess]:
    """Return the processes that have memory of these GPUs (their UUIDs; none: of all), without this
    process; none where nvidia-smi cannot tell."""
    fields = "--query-compute-apps=gpu_uuid,pid,used_memory"
    command = ["nvidia-smi", fields, "--format=csv,noheader,nounits"]
    command += [f"--id={','.join(gpus)}"] if gpus else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return []
    return [each for each in _parse_gpu_processes(done.stdout) if each.pid != os.getpid()]


def find_leftover_ranks() -> list[GpuProcess]:
    """Return the ranks of other runs of dtl that have memory of a GPU of this machine."""
    return [each for each in find_gpu_processes() if _is_rank_of_other_run(each.pid)]


def _parse_gpu_processes(text: str) -> Iterator[GpuProcess]:
    for line in text.splitlines():
        words = [word.strip() for word in line.split(",")]
        if len(words) == 3 and words[1].isdigit():
            size = int(words[2]) * 2**20 if words[2].isdigit() else None
            yield GpuProcess(words[0], int(words[1]), size)


def _is_rank_of_other_run(pid: int) -> bool:
    """Return whether a process is a rank that another launcher has started."""
    try:
        process = psutil.Process(pid)
        return "dtl.launch.worker" in process.cmdline() and process.ppid() != os.getppid()
    except psutil.Error:
        return False

"""Start the processes of a run, forward signals to them, and restart them after a crash."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from dtl.core.errors import DtlError
from dtl.core.lock import find_local_holder
from dtl.core.signals import STOPPED, Stop
from dtl.launch.child_process import (
    SUPERVISOR_PID,
    continue_when_stopped,
    fork_process,
    set_parent_death_signal,
)
from dtl.launch.torchrun import LaunchCommand, build_command
from dtl.plan.main_memory import count_oom_kills
from dtl.plan.memory_advice import suggest_memory_reduction
from dtl.plan.records import Layout
from dtl.run.folder import RunFolder
from dtl.train.deadline import START_TIME
from dtl.train.heartbeat import read_heartbeats

if TYPE_CHECKING:
    from dtl.prepare.prepared_run import PreparedRun

MAX_RESTARTS = 3  # after a crash
MAX_CRASHES_AT_STEP = 3  # crashes after one and the same step: it would crash again
CRASHED = -1
TERMINAL_LOG = "terminal.log"  # what a quiet run would have printed on the terminal


class Supervisor:
    """The process between the user and the processes of a run.

    Until there are processes, a signal ends the command at once, and nothing is lost. From then on
    it requests the run to save and stop. `can_fork`: a single process may be a fork of this one, on
    the CPU only: a process that has used CUDA in any way cannot pass it on.
    `quiet`: what the processes print goes to the run's logs.
    """

    def __init__(
        self, print_line: Callable[[str], None], *, can_fork: bool, quiet: bool = False
    ) -> None:
        self.print_line, self.can_fork, self.quiet = print_line, can_fork, quiet
        self._stop = Stop(interrupts=True)
        self._run: Path | None = None
        self._child: int | None = None

    def __enter__(self) -> Self:
        os.environ[START_TIME] = str(time.time())
        self._stop.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.__exit__()
        os.environ.pop(START_TIME, None)

    def launch(
        self, folder: RunFolder, prepared: PreparedRun | None, command: LaunchCommand | None = None
    ) -> int:
        """Run until it is finished or stopped, and return the exit code.

        After a crash it starts again from the newest checkpoint. `command`: starts the ranks of
        this node, where the run has several nodes.
        """
        self._run = folder.path
        self._stop.forward = self._forward_stop_request
        crash_steps: list[int] = []
        for restart in range(MAX_RESTARTS + 1):
            kills_before = count_oom_kills()
            # After a crash, the cache may not be what it was: it is opened again.
            code = self._launch_once(folder, prepared if restart == 0 else None, command)
            if code == CRASHED and self._stop.is_requested:
                self.print_line(
                    f"stopped by {self._stop.signal_name}; "
                    f"to continue, run `dtl resume {folder.path}`"
                )
                return STOPPED
            if code != CRASHED:
                return code
            step = folder.last_step
            crash_steps.append(step)
            if count_oom_kills() > kills_before:
                self.print_line(_describe_oom_kill(folder))
            if crash_steps[-MAX_CRASHES_AT_STEP:] == [step] * MAX_CRASHES_AT_STEP:
                self.print_line(
                    f"crashed {MAX_CRASHES_AT_STEP} times after step {step}; see {folder.logs}"
                )
                return 1
            if restart < MAX_RESTARTS:
                pause = 2.0**restart
                self.print_line(f"crashed after step {step}; restarting in {pause:.0f} s")
                self._sleep(pause)
        self.print_line(
            f"crashed {MAX_RESTARTS + 1} times; see {folder.logs}, then `dtl resume {folder.path}`"
        )
        return 1

    def _launch_once(
        self, folder: RunFolder, prepared: PreparedRun | None, command: LaunchCommand | None
    ) -> int:
        """Return the exit code, or CRASHED where the run has not recorded how it ended."""
        if self._stop.is_requested:
            return CRASHED
        folder.write_exit_code(None)
        if command is None and self.can_fork and _is_single_cpu_process(folder.plan.layout):
            code = self._run_fork(folder, prepared)
        else:
            code = self._run_command(folder, command or build_command(folder))
        self._child = None
        if folder.state == "absent":  # another node creates the folder, and has not yet
            return code if code == DtlError.exit_code else CRASHED
        if folder.state == "finished":
            return 0
        if code == DtlError.exit_code:
            return code
        return folder.exit_code if folder.exit_code is not None else CRASHED

    def _run_fork(self, folder: RunFolder, prepared: PreparedRun | None) -> int:
        """Run a single process on the CPU: a fork of this one, which has imported all."""

        def work() -> int:
            self._stop.forward = None
            from dtl.launch import worker

            return worker.main(["run", str(folder.path)], prepared=prepared)

        child = fork_process(work, log=folder.logs / TERMINAL_LOG if self.quiet else None)
        self._set_child(child)
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)

    def _run_command(self, folder: RunFolder, command: LaunchCommand) -> int:
        path = folder.logs / command.log_name if folder.logs.is_dir() else Path(os.devnull)
        with ExitStack() as files:
            log = files.enter_context(path.open("ab"))
            terminal = (
                files.enter_context((folder.logs / TERMINAL_LOG).open("ab")) if self.quiet else None
            )
            process = subprocess.Popen(
                command.argv,
                env={**os.environ, **command.environment, SUPERVISOR_PID: str(os.getpid())},
                stdout=terminal,
                stderr=log,
                start_new_session=True,
                preexec_fn=partial(set_parent_death_signal, os.getpid()),
            )
            self._set_child(process.pid)
            with continue_when_stopped(process.pid, self.print_line):
                return process.wait()

    def _set_child(self, child: int) -> None:
        self._child = child
        if self._stop.is_requested:  # while the child was being started
            self._forward_stop_request()

    def _forward_stop_request(self) -> None:
        """Send SIGTERM to rank 0, which tells the others; to the child while there is no rank 0."""
        if self._child is None or self._run is None:
            return
        holder = find_local_holder(self._run)
        is_ours = holder is not None and _is_descendant(holder, self._child)
        target = holder if holder is not None and is_ours else self._child
        try:
            os.kill(target, signal.SIGTERM)
        except ProcessLookupError:  # it has just ended by itself
            return

    def _sleep(self, seconds: float) -> None:
        """Sleep until the time is over or a stop is requested."""
        end = time.monotonic() + seconds
        while not self._stop.is_requested and time.monotonic() < end:
            time.sleep(0.05)


def _is_single_cpu_process(layout: Layout) -> bool:
    return layout.world_size == 1 and layout.device == "cpu"


def _describe_oom_kill(folder: RunFolder) -> str:
    """Return what the run did before the kernel killed a process, by the last heartbeats."""
    heartbeats = read_heartbeats(folder.heartbeats)
    activity = min(heartbeats, key=lambda each: each.last_alive).activity if heartbeats else "start"
    change = suggest_memory_reduction(folder.plan, activity=activity)
    return (
        "the kernel has killed a process because main memory was full; the last activity of the "
        f"run was {activity}; {change}"
    )


def _is_descendant(process: int, ancestor: int) -> bool:
    """Whether a process is another or below it; an old lock may hold the id of a strange one."""
    import psutil

    try:
        parents = [parent.pid for parent in psutil.Process(process).parents()]
    except psutil.Error:
        return False
    return ancestor in (process, *parents)

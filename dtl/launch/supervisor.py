"""Starts a run's processes, hands signals on to them, and starts them again after a crash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from dtl.core.errors import DtlError
from dtl.core.lock import holder_here
from dtl.core.signals import STOPPED, Stop
from dtl.launch.torchrun import Command, command
from dtl.plan.hardware import memory_kills
from dtl.plan.memory_advice import relief
from dtl.run.folder import RunFolder
from dtl.train.deadline import STARTED
from dtl.train.heartbeat import read_beats

if TYPE_CHECKING:
    from dtl.prepare.preparation import Prepared

RESTARTS = 3  # after a crash
SAME_STEP = 3  # crashes after one and the same step: it would crash again
CRASHED = -1
TOLD = "told.log"  # what a quiet run would have told the user


class Supervisor:
    """Stands between the user and a run's processes.

    Until there are processes, a signal ends the command at once, with nothing lost. From then on
    it asks the run to save and end. `fork`: a single process may be a copy of this one. `quiet`:
    what the processes tell the user goes to the run's logs.
    """

    def __init__(self, say: Callable[[str], None], *, fork: bool, quiet: bool = False) -> None:
        self.say, self.fork, self.quiet = say, fork, quiet
        self._stop = Stop(interrupts=True)
        self._run: Path | None = None
        self._child: int | None = None

    def __enter__(self) -> Self:
        os.environ[STARTED] = str(time.time())
        self._stop.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.__exit__()
        os.environ.pop(STARTED, None)

    def launch(
        self, folder: RunFolder, prepared: Prepared | None, started: Command | None = None
    ) -> int:
        """Run to its end; the exit code. After a crash, again from the newest checkpoint.

        `started`: what starts this machine's part, where it is one of several.
        """
        self._run = folder.path
        self._stop.passes_on = self._pass_on
        stuck_at: list[int] = []
        for restart in range(RESTARTS + 1):
            killed_before = memory_kills()
            code = self._launch_once(folder, prepared, started)
            if code == CRASHED and self._stop.asked:
                self.say(f"stopped by {self._stop.by}; `dtl resume {folder.path}` continues")
                return STOPPED
            if code != CRASHED:
                return code
            stuck_at.append(folder.last_step)
            if memory_kills() > killed_before:
                self.say(_memory_advice(folder))
            if stuck_at[-SAME_STEP:] == [stuck_at[-1]] * SAME_STEP:
                self.say(f"crashed {SAME_STEP} times after step {stuck_at[-1]}; see {folder.logs}")
                return 1
            if restart < RESTARTS:
                pause = 2.0**restart
                self.say(f"crashed after step {stuck_at[-1]}; starting again in {pause:.0f} s")
                self._wait(pause)
        self.say(
            f"crashed {RESTARTS + 1} times; see {folder.logs}, then `dtl resume {folder.path}`"
        )
        return 1

    def _launch_once(
        self, folder: RunFolder, prepared: Prepared | None, started: Command | None
    ) -> int:
        if self._stop.asked:
            return CRASHED
        folder.note_end(None)
        if started is None and self.fork and folder.plan.layout.ranks == 1:
            code = self._copy(folder, prepared)
        else:
            code = self._torchrun(folder, started or command(folder))
        self._child = None
        if folder.state == "absent":  # another machine is to make it, and has not come so far
            return code if code == DtlError.exit_code else CRASHED
        if folder.state == "finished":
            return 0
        if code == 2:
            return code
        return folder.ended if folder.ended is not None else CRASHED

    def _copy(self, folder: RunFolder, prepared: Prepared | None) -> int:
        """One process needs no launcher: a copy of this one, which has all it needs at hand."""

        def work() -> int:
            self._stop.passes_on = None
            from dtl.launch import worker

            return worker.main(["run", str(folder.path)], prepared=prepared)

        child = start_copy(work, log=folder.logs / TOLD if self.quiet else None)
        self._watch_over(child)
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)

    def _torchrun(self, folder: RunFolder, started: Command) -> int:
        from dtl.launch.worker import SUPERVISOR, end_with_parent

        path = folder.logs / started.log if folder.logs.is_dir() else Path(os.devnull)
        with ExitStack() as files:
            log = files.enter_context(path.open("ab"))
            told = files.enter_context((folder.logs / TOLD).open("ab")) if self.quiet else None
            process = subprocess.Popen(
                started.argv,
                env={**os.environ, **started.environment, SUPERVISOR: str(os.getpid())},
                stdout=told,
                stderr=log,
                start_new_session=True,
                preexec_fn=partial(end_with_parent, os.getpid()),
            )
            self._watch_over(process.pid)
            return process.wait()

    def _watch_over(self, child: int) -> None:
        self._child = child
        if self._stop.asked:  # while it was being started
            self._pass_on()

    def _pass_on(self) -> None:
        """Ask rank 0, which tells the others; the child while there is no rank 0 yet."""
        if self._child is None or self._run is None:
            return
        holder = holder_here(self._run)
        target = holder if holder is not None and _descends(holder, self._child) else self._child
        try:
            os.kill(target, signal.SIGTERM)
        except ProcessLookupError:  # it has just ended by itself
            return

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._stop.asked and time.monotonic() < until:
            time.sleep(0.05)


def start_copy(work: Callable[[], int], *, log: Path | None) -> int:
    """A copy of this process that does the work, ends with its exit code, and dies with this one.
    `log`: where it prints; None: where this one does. Returns its number."""
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            from dtl.launch import worker

            worker.end_with_parent(parent)
            if log is not None:
                worker.log_to(log)
            code = work()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return child


def _memory_advice(folder: RunFolder) -> str:
    """A process that the kernel kills says nothing: its last heartbeat tells where it was."""
    beats = read_beats(folder.heartbeats)
    where = min(beats, key=lambda beat: beat.alive).doing if beats else "start"
    change = relief(folder.plan, doing=where)
    return (
        "the kernel has meanwhile killed a process for want of main memory; the run was last seen "
        f"in {where}; {change}"
    )


def _descends(process: int, ancestor: int) -> bool:
    """Whether a process is below, or is, another: an old lease may name a stranger's number."""
    import psutil

    try:
        above = [parent.pid for parent in psutil.Process(process).parents()]
    except psutil.Error:
        return False
    return ancestor in (process, *above)

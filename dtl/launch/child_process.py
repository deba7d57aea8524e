"""Child processes that end with their parent, and output that goes to a log."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

SUPERVISOR_PID = "DTL_SUPERVISOR"  # variable: the process that started the launcher of the ranks
STOPPED_SECONDS = 10.0  # after which a launcher that was stopped is continued
PR_SET_PDEATHSIG = 1  # of Linux's prctl(2)


def fork_process(work: Callable[[], int], *, log: Path | None) -> int:
    """Run `work` in a copy of this process, and return the copy's process id.

    The copy ends with the exit code that `work` returns, and is killed when this process ends.
    `log`: the file for its output; None: the output of this process.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            set_parent_death_signal(parent)
            if log is not None:
                redirect_output(log)
            code = work()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return child


@contextmanager
def continue_when_stopped(
    child: int, print_line: Callable[[str], None], *, seconds: float = STOPPED_SECONDS
) -> Iterator[None]:
    """Continue a launcher that has been stopped (SIGSTOP) for a time: its ranks train on, and
    nothing would end it."""
    import psutil

    ended = threading.Event()

    def watch() -> None:
        stopped = 0
        while not ended.wait(seconds / 2):
            try:
                is_stopped = psutil.Process(child).status() == psutil.STATUS_STOPPED
            except psutil.Error:  # it has ended
                return
            stopped = stopped + 1 if is_stopped else 0
            if stopped == 2:
                print_line(f"the launcher (process {child}) was stopped by a signal; continuing it")
                os.kill(child, signal.SIGCONT)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def redirect_output(path: Path) -> None:
    """Append all later output of this process to a file, also what C libraries print."""
    sys.stdout.flush()
    sys.stderr.flush()
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def set_parent_death_signal(parent: int | None = None) -> None:
    """Have the kernel kill this process when its parent is killed, so that none trains on alone.

    `parent`: the parent's process id; where that one is gone already, this process ends at once.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def exit_when_launcher_dies() -> None:
    """Have a rank of `dtl train` end with its parent: the supervisor, or a launcher that is a child
    of the supervisor; also where the parent was killed while this rank started."""
    set_parent_death_signal()
    supervisor = os.environ.get(SUPERVISOR_PID)
    if supervisor is not None and sys.platform == "linux" and supervisor != str(os.getppid()):
        try:
            status = Path(f"/proc/{os.getppid()}/stat").read_text(encoding="utf-8")
        except OSError:
            os._exit(1)
        if status.rpartition(")")[2].split()[1] != supervisor:
            os._exit(1)

"""Wait for a moment of a running command."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from benchmarks.chaos.faults import Moment
from benchmarks.chaos.runs import Processes, Run, is_before_evaluation

LISTENS_SECONDS = 5.0  # by then a process listens to signals, or it never does


def reach(run: Run, moment: Moment, victim: str, *, listening: bool = False) -> Processes | None:
    """Wait for it; the processes as they live then. None when the command has ended before.

    `listening`: the victim is past its first imports, in which no program hears a signal.
    """
    if moment.phase in ("start-up", "tokenising"):
        return _in_start_up(run, moment, victim, listening=listening)
    found = run.wait_for_ranks()
    if found is None or not run.until(lambda: _is_there(run, moment)):
        return None
    time.sleep(moment.delay)
    return found


def _in_start_up(run: Run, moment: Moment, victim: str, *, listening: bool) -> Processes | None:
    """Some time after the victim was started."""
    while not (victims := run.processes().of(victim)):
        if run.exit_code is not None:
            return None
        time.sleep(0.02)
    ready = _tokenises if moment.phase == "tokenising" else _listens
    limit = time.monotonic() + LISTENS_SECONDS
    while listening and not ready(victims[0]) and time.monotonic() < limit:
        time.sleep(0.01)
    time.sleep(moment.delay)
    return None if run.exit_code is not None else run.processes()


def _listens(process: int) -> bool:
    """Whether the process takes SIGTERM itself."""
    for line in _proc(process, "status").splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
    return False


def _tokenises(process: int) -> bool:
    """Whether the process has loaded the library that tokenises."""
    return "/tokenizers/" in _proc(process, "maps")


def _proc(process: int, name: str) -> str:
    try:
        return Path(f"/proc/{process}/{name}").read_text(encoding="utf-8")
    except OSError:
        return ""


def _is_there(run: Run, moment: Moment) -> bool:
    """Whether the run, in this launch, has come to the moment."""
    line = run.last_line()
    step = int(line.get("step", 0))
    if moment.phase == "export":
        return run.exporting or run.finished
    if step < moment.step or step <= run.begun_at_step:
        return False
    if moment.phase == "save":
        return run.saving
    return is_before_evaluation(line) if moment.phase == "evaluation" else True

"""Wait for a moment of a running command."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from benchmarks.chaos.faults import Moment
from benchmarks.chaos.runs import Processes, Run, is_before_evaluation

IMPORT_SECONDS = 5.0  # by then a process handles signals, or it never does


def wait_for_moment(
    run: Run, moment: Moment, victim: str, *, after_imports: bool = False
) -> Processes | None:
    """Wait for a moment; return the processes that run then, or None when the command ended first.

    `after_imports`: wait until the victim has installed its signal handlers.
    """
    if moment.phase in ("start-up", "tokenizing"):
        return _in_start_up(run, moment, victim, after_imports=after_imports)
    processes = run.wait_for_ranks()
    if processes is None or not run.wait_until(lambda: _is_reached(run, moment)):
        return None
    time.sleep(moment.delay)
    return processes


def _in_start_up(run: Run, moment: Moment, victim: str, *, after_imports: bool) -> Processes | None:
    """Wait for some time after the start of the victim."""
    while not (victims := run.processes().ids_of(victim)):
        if run.exit_code is not None:
            return None
        time.sleep(0.02)
    ready = _has_tokenizer if moment.phase == "tokenizing" else _handles_sigterm
    limit = time.monotonic() + IMPORT_SECONDS
    while after_imports and not ready(victims[0]) and time.monotonic() < limit:
        time.sleep(0.01)
    time.sleep(moment.delay)
    return None if run.exit_code is not None else run.processes()


def _handles_sigterm(process: int) -> bool:
    """Whether the process takes SIGTERM itself."""
    for line in _proc(process, "status").splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
    return False


def _has_tokenizer(process: int) -> bool:
    """Whether the process has loaded the tokenizer library."""
    return "/tokenizers/" in _proc(process, "maps")


def _proc(process: int, name: str) -> str:
    try:
        return Path(f"/proc/{process}/{name}").read_text(encoding="utf-8")
    except OSError:
        return ""


def _is_reached(run: Run, moment: Moment) -> bool:
    """Whether the run has reached the moment in this launch."""
    line = run.last_line()
    step = int(line.get("step", 0))
    if moment.phase == "export":
        return run.is_exporting or run.is_finished
    if step < moment.step or step <= run.start_step:
        return False
    if moment.phase == "save":
        return run.is_saving
    return is_before_evaluation(line) if moment.phase == "evaluation" else True

"""Wait for a moment of a running command."""

from __future__ import annotations

import time

from benchmarks.chaos.faults import Moment
from benchmarks.chaos.runs import Processes, Run, is_before_evaluation


def reach(run: Run, moment: Moment) -> Processes | None:
    """Wait for it; the processes as they live then. None when the command has ended before."""
    if moment.phase == "tokenising":
        time.sleep(moment.delay)
        return run.processes()
    if moment.phase == "start-up":
        return _in_start_up(run, moment)
    found = run.wait_for_ranks()
    if found is None or not run.until(lambda: _is_there(run, moment)):
        return None
    time.sleep(moment.delay)
    return found


def _in_start_up(run: Run, moment: Moment) -> Processes | None:
    """Some time after the desk was started; as many processes as there are by then."""
    limit = time.monotonic() + moment.delay
    while time.monotonic() < limit:
        if run.exit_code is not None:
            return None
        time.sleep(0.01)
    return run.processes()


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

"""SIGSTOP to one rank, as by a hanging disk: it is detected and named, and the run resumes."""

from __future__ import annotations

import re
import signal
import time

from benchmarks.chaos.outputs import find_differences, reference_output
from benchmarks.chaos.runs import Processes, Run, TimedOut, kill
from benchmarks.chaos.setup import SCENARIOS, Setup
from benchmarks.chaos.table import collect, median_seconds
from benchmarks.chaos.trials import TrialResult

NAME = "stopped"
REQUIREMENT = "the hanging rank is named, the run restarts by itself, ends bitwise equal"
HANG_SECONDS, LOADING_SECONDS = 6, 40  # the second also holds for saves
WATCHED = (
    f"train.hang_seconds={HANG_SECONDS}.0",
    f"train.loading_hang_seconds={LOADING_SECONDS}.0",
)
END_SECONDS = LOADING_SECONDS + 45.0  # a launcher may give its ranks 30 s


def run_trial(setup: Setup, number: int) -> TrialResult:
    """Stop one rank of two in the middle of a run."""
    scenario, rank = SCENARIOS[number // 2 % 3], number % 2
    rng = setup.rng(NAME, number)
    result = TrialResult(NAME, number, actions=[scenario.name])
    expected = reference_output(setup, scenario)
    run = Run(setup, setup.trial_folder(NAME, number), scenario, WATCHED)
    run.remove()
    try:
        run.start()
        living = run.wait_for_ranks()
        step = rng.randint(10, scenario.steps // 2)
        if living is None or not run.wait_until(lambda: run.step >= step):
            result.violations.append(f"it did not start: {run.last_output}")
            return result
        kill(living.ranks[rank], signal.SIGSTOP)
        start = time.monotonic()
        result.injected = 1
        result.actions.append(f"rank {rank} stopped after step {run.step}")
        result.violations += [f"process {left} still runs" for left in _left(run, living)]
        result.measurements["seconds"] = time.monotonic() - start
        if result.violations:
            return result
        code = run.wait()
        result.violations += find_differences(run, expected) if code == 0 else [f"exit code {code}"]
        if not names_late_rank(run.output, rank):
            result.violations.append(f"rank {rank} is not named: {run.last_output}")
    except TimedOut as timeout:
        result.violations.append(str(timeout))
    finally:
        run.kill_all()
    if not result.violations:
        run.remove()
    return result


def describe(trials: list[TrialResult]) -> str:
    """Return the text of the table."""
    return (
        f"{len(trials)} runs with a rank stopped by SIGSTOP, train.hang_seconds={HANG_SECONDS} "
        f"and, in saves, train.loading_hang_seconds={LOADING_SECONDS}; "
        f"from there to the end of all ranks: median {median_seconds(collect(trials, 'seconds'))}"
    )


def _left(run: Run, living: Processes) -> list[int]:
    return run.wait_until_ended([*living.ranks.values()], END_SECONDS)


def names_late_rank(output: str, rank: int) -> bool:
    """Whether the line about a hanging rank names this one, and not the other."""
    lines = [text for text in output.splitlines() if "has made no progress" in text]
    return any(re.search(rf"rank {rank}\b", text.partition(";")[2]) for text in lines)

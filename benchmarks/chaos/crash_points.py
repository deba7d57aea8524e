"""Kill a run at every single write, sync, rename and removal of one save."""

from __future__ import annotations

from pathlib import Path

from benchmarks.chaos.outputs import find_differences, reference_output
from benchmarks.chaos.runs import Run, TimedOut
from benchmarks.chaos.setup import SINGLE_PROCESS, Setup
from benchmarks.chaos.trials import TrialResult

NAME = "crash-point"
REQUIREMENT = "resumes from an intact checkpoint, ends bitwise equal"
SAVE = 30  # the third of its saves, so that it also removes an older one
FEWEST = 12  # calls of a save; fewer would mean that the listing is broken


def run_trial(setup: Setup, number: int) -> TrialResult:
    """Kill one run at one call."""
    points = calls(setup)
    result = TrialResult(NAME, number)
    if number >= len(points):
        return result
    run = Run(setup, setup.trial_folder(NAME, number), SINGLE_PROCESS, ("train.keep_last=2",))
    run.remove()
    run.environment = _environment(run, at=number + 1)
    result.actions.append(f"killed before call {number + 1} of {len(points)}: {points[number]}")
    try:
        run.start()
        code = run.wait()
    except TimedOut as timeout:
        result.violations.append(str(timeout))
        return result
    finally:
        run.kill_all()
    result.injected = int(_done(run).exists())
    if code:
        result.violations.append(f"exit code {code}: {run.last_output}")
    else:
        result.violations += find_differences(
            run, reference_output(setup, SINGLE_PROCESS, ("train.keep_last=2",))
        )
    if "restarting in" not in run.output or "resuming from" not in run.output:
        result.violations.append("it did not restart from a checkpoint")
    if not result.violations:
        run.remove()
    return result


def describe(trials: list[TrialResult]) -> str:
    """Return the text of the table."""
    return (
        f"{len(trials)} points of one save of a single process: before each call that creates, "
        "syncs, renames or removes a file or folder, and with each file empty and half written"
    )


def calls(setup: Setup) -> list[str]:
    """Return the calls of one save in their order, from a run that only lists them."""
    run = Run(
        setup, setup.folder / "references" / "crash-points", SINGLE_PROCESS, ("train.keep_last=2",)
    )
    listing = run.workdir / "calls.txt"
    with setup.lock("crash points"):
        if not listing.exists():
            run.remove()
            run.environment = _environment(run, at=0)
            run.start()
            if run.wait() or not listing.exists():
                raise SystemExit(f"the calls of a save were not listed:\n{run.output}")
    names = listing.read_text(encoding="utf-8").splitlines()
    assert len(names) >= FEWEST, names
    return names


def _environment(run: Run, *, at: int) -> dict[str, str]:
    return {
        "CHAOS_CRASH_AT": str(at),
        "CHAOS_CRASH_STEP": str(SAVE),
        "CHAOS_CRASH_DONE": str(_done(run)),
        "CHAOS_CRASH_LIST": str(run.workdir / "calls.txt"),
    }


def _done(run: Run) -> Path:
    return run.workdir / "died.txt"

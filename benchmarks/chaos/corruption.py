"""Damage the newest checkpoint of an interrupted run: it must be detected before it is loaded."""

from __future__ import annotations

import shutil
import signal

from benchmarks.chaos.damage import HARMLESS, DamagedCheckpoint, damage_checkpoint, draw_damage
from benchmarks.chaos.outputs import find_differences, reference_output
from benchmarks.chaos.runs import Run, TimedOut
from benchmarks.chaos.setup import SINGLE_PROCESS, Setup
from benchmarks.chaos.table import count_values
from benchmarks.chaos.trials import TrialResult

NAME = "corruption"
REQUIREMENT = (
    "detected and named before it is loaded, resumes from an older one, ends bitwise equal"
)
FILES = ["manifest.json", "progress.json", "part-00001.safetensors"]
INTERRUPTED_AFTER, FOREIGN_AFTER = 20, 30  # steps, of a run that saves every 10


def run_trial(setup: Setup, number: int) -> TrialResult:
    """Apply one damage to a copy of the interrupted run, and resume it."""
    damage = draw_damage(number, FILES)
    result = TrialResult(NAME, number, injected=1, actions=[str(damage)])
    result.measurements = {"way": damage.way, "file": damage.file or "whole checkpoint"}
    mine = interrupted(setup, "mine", after=INTERRUPTED_AFTER)
    other = interrupted(setup, "foreign", ("train.seed=1",), after=FOREIGN_AFTER)
    run = Run(setup, setup.trial_folder(NAME, number), SINGLE_PROCESS)
    run.remove()
    shutil.copytree(mine.folder, run.folder, symlinks=True)
    rng = setup.rng(NAME, number)
    damaged = damage_checkpoint(damage, rng, checkpoints=run.checkpoints, foreign=other.checkpoints)
    try:
        run.start()
        code = run.wait()
    except TimedOut as timeout:
        result.violations.append(str(timeout))
        return result
    finally:
        run.kill_all()
    result.violations += _faults_of_telling(run, damaged, harmless=damage.way in HARMLESS)
    if code:
        result.violations.append(f"exit code {code}: {run.last_output}")
    else:
        result.violations += find_differences(run, reference_output(setup, SINGLE_PROCESS))
    if not result.violations:
        run.remove()
    return result


def describe(trials: list[TrialResult]) -> str:
    """Return the text of the table."""
    files = count_values(trials, "file")
    ways = len({result.measurements.get("way") for result in trials})
    return f"{len(trials)} damaged checkpoints in {ways} ways ({files})"


def interrupted(setup: Setup, name: str, overrides: tuple[str, ...] = (), *, after: int) -> Run:
    """Return a single-process run that was stopped after some steps; it is created once."""
    run = Run(setup, setup.folder / "references" / f"interrupted-{name}", SINGLE_PROCESS, overrides)
    with setup.lock(name):
        while not _is_interrupted(run, after):
            run.remove()
            run.start()
            run.wait_until(lambda: run.step >= after + 2)
            assert run.process is not None
            run.process.send_signal(signal.SIGTERM)
            run.wait()
    return run


def _is_interrupted(run: Run, after: int) -> bool:
    """Whether it stopped between the last regular save and the next."""
    steps = sorted(int(path.name[-8:]) for path in run.checkpoints.glob("step-*"))
    return (
        bool(steps) and not run.is_finished and after < steps[-1] < after + run.scenario.save_every
    )


def _faults_of_telling(run: Run, damaged: DamagedCheckpoint, *, harmless: bool) -> list[str]:
    """Check that the damaged one is named before the run resumes from the right one."""
    before, resumed, after = run.output.partition("resuming from ")
    if not resumed:
        return ["it did not resume from a checkpoint"]
    faults = []
    taken = after.splitlines()[0]
    if not taken.endswith(damaged.fallback.name):
        faults.append(f"resumed from {taken}, not from {damaged.fallback.name}")
    name = damaged.checkpoint.name
    named = any("renamed to" in text and name in text for text in before.splitlines())
    if not named and not harmless:
        faults.append(f"{name} was not named as damaged")
    return faults

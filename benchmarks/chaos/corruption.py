"""Damage the newest checkpoint of an interrupted run: it is found out before it is loaded."""

from __future__ import annotations

import shutil
import signal

from benchmarks.chaos.bed import ALONE, Bed
from benchmarks.chaos.damage import HARMLESS, Spoiled, apply, draw_damage
from benchmarks.chaos.ends import faults_of_end, reference
from benchmarks.chaos.runs import Hung, Run
from benchmarks.chaos.table import counted
from benchmarks.chaos.trials import Trial

NAME = "corruption"
HOLDS = "found out before it is loaded, named, the older one taken, ends bitwise"
FILES = ["manifest.json", "progress.json", "part-00001.safetensors"]
INTERRUPTED_AFTER, FOREIGN_AFTER = 20, 30  # steps, of a run that saves every 10


def trial(bed: Bed, number: int) -> Trial:
    """One damage to one copy of the interrupted run."""
    damage = draw_damage(number, FILES)
    found = Trial(NAME, number, landed=1, did=[str(damage)])
    found.found = {"way": damage.way, "file": damage.file or "whole checkpoint"}
    mine = interrupted(bed, "mine", after=INTERRUPTED_AFTER)
    other = interrupted(bed, "foreign", ("train.seed=1",), after=FOREIGN_AFTER)
    run = Run(bed, bed.place(NAME, number), ALONE)
    run.remove()
    shutil.copytree(mine.folder, run.folder, symlinks=True)
    draw = bed.draw(NAME, number)
    spoiled = apply(damage, draw, checkpoints=run.checkpoints, foreign=other.checkpoints)
    try:
        run.start()
        code = run.wait()
    except Hung as hung:
        found.broken.append(str(hung))
        return found
    finally:
        run.end_all()
    found.broken += _faults_of_telling(run, spoiled, harmless=damage.way in HARMLESS)
    if code:
        found.broken.append(f"exit code {code}: {run.last_words}")
    else:
        found.broken += faults_of_end(run, reference(bed, ALONE))
    if not found.broken:
        run.remove()
    return found


def line(trials: list[Trial]) -> str:
    """What the table says."""
    files = counted(trials, "file")
    ways = len({found.found.get("way") for found in trials})
    return f"{len(trials)} damaged checkpoints in {ways} ways ({files})"


def interrupted(bed: Bed, name: str, overrides: tuple[str, ...] = (), *, after: int) -> Run:
    """A run of one process that was asked to stop after some steps; made once."""
    run = Run(bed, bed.folder / "references" / f"interrupted-{name}", ALONE, overrides)
    with bed.once(name):
        while not _is_interrupted(run, after):
            run.remove()
            run.start()
            run.until(lambda: run.step >= after + 2)
            assert run.process is not None
            run.process.send_signal(signal.SIGTERM)
            run.wait()
    return run


def _is_interrupted(run: Run, after: int) -> bool:
    """Whether it has stopped between the last rhythmic save and the next."""
    steps = sorted(int(path.name[-8:]) for path in run.checkpoints.glob("step-*"))
    return bool(steps) and not run.finished and after < steps[-1] < after + run.scene.save_every


def _faults_of_telling(run: Run, spoiled: Spoiled, *, harmless: bool) -> list[str]:
    """The damaged one is named, with what is wrong, before the run resumes from the right one."""
    before, resumed, after = run.told.partition("resuming from ")
    if not resumed:
        return ["it has not resumed from a checkpoint"]
    faults = []
    taken = after.splitlines()[0]
    if not taken.endswith(spoiled.taken.name):
        faults.append(f"resumed from {taken}, not from {spoiled.taken.name}")
    name = spoiled.checkpoint.name
    named = any("set aside" in text and name in text for text in before.splitlines())
    if not named and not harmless:
        faults.append(f"{name} was not named as damaged")
    return faults

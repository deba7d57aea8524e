"""Death at every single write, sync, rename and removal of one save."""

from __future__ import annotations

from pathlib import Path

from benchmarks.chaos.bed import ALONE, Bed
from benchmarks.chaos.ends import faults_of_end, reference
from benchmarks.chaos.runs import Hung, Run
from benchmarks.chaos.trials import Trial

NAME = "crash-point"
HOLDS = "resumes from a whole checkpoint, ends bitwise"
SAVE = 30  # the third of its saves, so that it also removes an older one
FEWEST = 12  # calls of a save; fewer would mean that they are not seen any more


def trial(bed: Bed, number: int) -> Trial:
    """One run that dies at one call."""
    points = calls(bed)
    found = Trial(NAME, number)
    if number >= len(points):
        return found
    run = Run(bed, bed.place(NAME, number), ALONE, ("train.keep_last=2",))
    run.remove()
    run.environment = _environment(run, at=number + 1)
    found.did.append(f"killed before call {number + 1} of {len(points)}: {points[number]}")
    try:
        run.start()
        code = run.wait()
    except Hung as hung:
        found.broken.append(str(hung))
        return found
    finally:
        run.end_all()
    found.landed = int(_done(run).exists())
    if code:
        found.broken.append(f"exit code {code}: {run.last_words}")
    else:
        found.broken += faults_of_end(run, reference(bed, ALONE, ("train.keep_last=2",)))
    if "starting again" not in run.told or "resuming from" not in run.told:
        found.broken.append("it was not started again from a checkpoint")
    if not found.broken:
        run.remove()
    return found


def line(trials: list[Trial]) -> str:
    """What the table says."""
    return (
        f"{len(trials)} points of one save of a single process: before each call that makes, "
        "syncs, renames or removes a file or folder, and with each file empty and half written"
    )


def calls(bed: Bed) -> list[str]:
    """The calls of one save in their order, from a run that only lists them."""
    run = Run(bed, bed.folder / "references" / "crash-points", ALONE, ("train.keep_last=2",))
    listing = run.place / "calls.txt"
    with bed.once("crash points"):
        if not listing.exists():
            run.remove()
            run.environment = _environment(run, at=0)
            run.start()
            if run.wait() or not listing.exists():
                raise SystemExit(f"the calls of a save were not seen:\n{run.told}")
    found = listing.read_text(encoding="utf-8").splitlines()
    assert len(found) >= FEWEST, found
    return found


def _environment(run: Run, *, at: int) -> dict[str, str]:
    return {
        "CHAOS_CRASH_AT": str(at),
        "CHAOS_CRASH_STEP": str(SAVE),
        "CHAOS_CRASH_DONE": str(_done(run)),
        "CHAOS_CRASH_LIST": str(run.place / "calls.txt"),
    }


def _done(run: Run) -> Path:
    return run.place / "died.txt"

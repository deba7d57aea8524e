"""One rank is stopped by SIGSTOP, as by a hanging disk or card: it is found, named, and resumed."""

from __future__ import annotations

import re
import signal
import time

from benchmarks.chaos.bed import SCENES, Bed
from benchmarks.chaos.ends import faults_of_end, reference
from benchmarks.chaos.runs import Hung, Processes, Run, kill
from benchmarks.chaos.table import listed, median_seconds
from benchmarks.chaos.trials import Trial

NAME = "stopped"
HOLDS = "the late rank is named, the run ends and resumes by itself, ends bitwise"
HANG_SECONDS, LOADING_SECONDS = 6, 40  # the second also holds for saves
WATCHED = (
    f"train.hang_seconds={HANG_SECONDS}.0",
    f"train.loading_hang_seconds={LOADING_SECONDS}.0",
)
GONE_SECONDS = LOADING_SECONDS + 45.0  # a launcher may give its ranks 30 s


def trial(bed: Bed, number: int) -> Trial:
    """One rank of two stands still in the middle of a run."""
    scene, rank = SCENES[number // 2 % 3], number % 2
    draw = bed.draw(NAME, number)
    found = Trial(NAME, number, did=[scene.name])
    expected = reference(bed, scene)
    run = Run(bed, bed.place(NAME, number), scene, WATCHED)
    run.remove()
    try:
        run.start()
        living = run.wait_for_ranks()
        step = draw.randint(10, scene.steps // 2)
        if living is None or not run.until(lambda: run.step >= step):
            found.broken.append(f"it did not start: {run.last_words}")
            return found
        kill(living.ranks[rank], signal.SIGSTOP)
        at = time.monotonic()
        found.landed = 1
        found.did.append(f"rank {rank} stopped after step {run.step}")
        found.broken += [f"process {left} lives on" for left in _left(run, living)]
        found.found["seconds"] = time.monotonic() - at
        if found.broken:
            return found
        code = run.wait()
        found.broken += faults_of_end(run, expected) if code == 0 else [f"exit code {code}"]
        if not names_late_rank(run.told, rank):
            found.broken.append(f"rank {rank} is not named: {run.last_words}")
    except Hung as hung:
        found.broken.append(str(hung))
    finally:
        run.end_all()
    if not found.broken:
        run.remove()
    return found


def line(trials: list[Trial]) -> str:
    """What the table says."""
    return (
        f"{len(trials)} runs with a rank stopped by SIGSTOP, train.hang_seconds={HANG_SECONDS} "
        f"and, in saves, train.loading_hang_seconds={LOADING_SECONDS}; "
        f"from there to the end of all ranks: median {median_seconds(listed(trials, 'seconds'))}"
    )


def _left(run: Run, living: Processes) -> list[int]:
    return run.gone([*living.ranks.values()], GONE_SECONDS)


def names_late_rank(told: str, rank: int) -> bool:
    """Whether a line on a rank that stood still blames this one, and not the other."""
    verdicts = [text for text in told.splitlines() if "stood still" in text]
    return any(re.search(rf"rank {rank}\b", text.partition(";")[2]) for text in verdicts)

"""A loss that is not finite on one rank: the step is left out on all, counted and told."""

from __future__ import annotations

import json

from benchmarks.chaos.bed import SCENES, Bed
from benchmarks.chaos.ends import read_end
from benchmarks.chaos.runs import Hung, Run
from benchmarks.chaos.table import total
from benchmarks.chaos.trials import Trial

NAME = "nan"
HOLDS = "steps left out, counted and told, the run ends; twice bitwise the same"
SPOILED = 4  # steps of a run


def trial(bed: Bed, number: int) -> Trial:
    """Two runs with the same steps spoiled on the same rank."""
    scene = SCENES[number % len(SCENES)]
    draw = bed.draw(NAME, number)
    steps = sorted(draw.sample(range(2, scene.steps), SPOILED))
    rank = draw.randrange(2)
    found = Trial(NAME, number, did=[f"{scene.name}: NaN on rank {rank} at steps {steps}"])
    ends = []
    for name in ("one", "two"):
        run = Run(bed, bed.place(NAME, number) / name, scene)
        run.remove()
        run.environment = {
            "CHAOS_NAN_STEPS": ",".join(map(str, steps)),
            "CHAOS_NAN_RANK": str(rank),
        }
        try:
            run.start()
            code = run.wait()
        except Hung as hung:
            found.broken.append(str(hung))
            return found
        finally:
            run.end_all()
        found.landed = 1
        if code:
            found.broken.append(f"exit code {code}: {run.last_words}")
            return found
        skipped = _skipped(run)
        found.found["skipped"] = len(skipped)
        if skipped != steps:
            found.broken.append(f"left out {skipped}")
        if run.told.count("skipped") < len(steps):
            found.broken.append("not every step that was left out was told")
        ends.append(read_end(run.folder, step=scene.steps))
    found.broken += ends[0].differences(ends[1])
    return found


def line(trials: list[Trial]) -> str:
    """What the table says."""
    return f"{len(trials)} pairs of runs, {total(trials, 'skipped')} steps left out in each"


def _skipped(run: Run) -> list[int]:
    text = (run.folder / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(found) for found in text.splitlines()]
    return [found["step"] for found in lines if found["kind"] == "skip"]

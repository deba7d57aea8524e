"""Bad rows in the data, to be skipped: what is learnt is what the good rows alone teach."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.chaos.bed import SCENES, Bed
from benchmarks.chaos.ends import read_end, reference
from benchmarks.chaos.runs import Hung, Run
from benchmarks.chaos.trials import Trial

NAME = "rows"
HOLDS = "losses, scores and weights are those of the good rows alone; the bad ones are told"
BAD = ('{"text": "torn', '{"other": "no text"}', '{"text": 7}', "[1, 2]", "not JSON")
BY_KEY = {"checkpoint differ", "digests differ"}  # these begin with the key of the data


def trial(bed: Bed, number: int) -> Trial:
    """One run on the same rows with bad ones in between."""
    scene = SCENES[number % len(SCENES)]
    draw = bed.draw(NAME, number)
    found = Trial(NAME, number, landed=1, did=[scene.name])
    expected = reference(bed, scene)
    run = Run(bed, bed.place(NAME, number), scene)
    run.remove()
    rows = (bed.folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
    for bad in BAD:
        rows.insert(draw.randrange(len(rows) + 1), bad)
    spoiled = _write(run.place / "spoiled.jsonl", rows)
    run.overrides = (
        f"data.train={spoiled}",
        "data.on_bad_row=skip",
        "data.max_bad_fraction=0.5",
    )
    try:
        run.start()
        code = run.wait()
    except Hung as hung:
        found.broken.append(str(hung))
        return found
    finally:
        run.end_all()
    if code:
        found.broken.append(f"exit code {code}: {run.last_words}")
        return found
    end = read_end(run.folder, step=scene.steps)
    found.broken += [text for text in expected.differences(end) if text not in BY_KEY]
    if _weights(end.checkpoint) != _weights(expected.checkpoint):
        found.broken.append("the tensors of the last checkpoint differ")
    if str(len(BAD)) not in run.told or "skip" not in run.told:
        found.broken.append(f"{len(BAD)} skipped rows were not told")
    if not found.broken:
        run.remove()
    return found


def line(trials: list[Trial]) -> str:
    """What the table says."""
    return f"{len(trials)} runs, each with {len(BAD)} bad rows: {json.dumps(BAD)}".replace("|", "/")


def _weights(files: dict[str, str]) -> dict[str, str]:
    return {name: seal for name, seal in files.items() if name.startswith("part-")}


def _write(path: Path, rows: list[str]) -> Path:
    path.parent.mkdir(parents=True)
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return path

"""Bad rows in the data, which are skipped: the result is that of the valid rows alone."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.chaos.outputs import read_output, reference_output
from benchmarks.chaos.runs import Run, TimedOut
from benchmarks.chaos.setup import SCENARIOS, Setup
from benchmarks.chaos.trials import TrialResult

NAME = "rows"
REQUIREMENT = "losses, scores and weights are those of the valid rows alone; bad rows are reported"
BAD = ('{"text": "torn', '{"other": "no text"}', '{"text": 7}', "[1, 2]", "not JSON")
BY_KEY = {"checkpoint differ", "digests differ"}  # these begin with the key of the data


def run_trial(setup: Setup, number: int) -> TrialResult:
    """Run on the same rows with bad ones in between."""
    scenario = SCENARIOS[number % len(SCENARIOS)]
    rng = setup.rng(NAME, number)
    result = TrialResult(NAME, number, injected=1, actions=[scenario.name])
    expected = reference_output(setup, scenario)
    run = Run(setup, setup.trial_folder(NAME, number), scenario)
    run.remove()
    rows = (setup.folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
    for bad in BAD:
        rows.insert(rng.randrange(len(rows) + 1), bad)
    damaged = _write(run.workdir / "damaged.jsonl", rows)
    run.overrides = (
        f"data.train={damaged}",
        "data.on_bad_row=skip",
        "data.max_bad_fraction=0.5",
    )
    try:
        run.start()
        code = run.wait()
    except TimedOut as timeout:
        result.violations.append(str(timeout))
        return result
    finally:
        run.kill_all()
    if code:
        result.violations.append(f"exit code {code}: {run.last_output}")
        return result
    end = read_output(run.folder, step=scenario.steps)
    result.violations += [text for text in expected.differences(end) if text not in BY_KEY]
    if _weights(end.checkpoint) != _weights(expected.checkpoint):
        result.violations.append("the tensors of the last checkpoint differ")
    if str(len(BAD)) not in run.output or "skip" not in run.output:
        result.violations.append(f"{len(BAD)} skipped rows were not reported")
    if not result.violations:
        run.remove()
    return result


def describe(trials: list[TrialResult]) -> str:
    """Return the text of the table."""
    return f"{len(trials)} runs, each with {len(BAD)} bad rows: {json.dumps(BAD)}".replace("|", "/")


def _weights(files: dict[str, str]) -> dict[str, str]:
    return {name: seal for name, seal in files.items() if name.startswith("part-")}


def _write(path: Path, rows: list[str]) -> Path:
    path.parent.mkdir(parents=True)
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return path

"""A loss that is not finite on one rank: all ranks skip the step, and it is counted and logged."""

from __future__ import annotations

import json

from benchmarks.chaos.outputs import read_output
from benchmarks.chaos.runs import Run, TimedOut
from benchmarks.chaos.setup import SCENARIOS, Setup
from benchmarks.chaos.table import total
from benchmarks.chaos.trials import TrialResult

NAME = "nan"
REQUIREMENT = "steps are skipped, counted and logged, the run ends; two runs are bitwise equal"
NAN_STEPS = 4  # steps of a run


def run_trial(setup: Setup, number: int) -> TrialResult:
    """Two runs with the same steps damaged on the same rank."""
    scenario = SCENARIOS[number % len(SCENARIOS)]
    rng = setup.rng(NAME, number)
    steps = sorted(rng.sample(range(2, scenario.steps), NAN_STEPS))
    rank = rng.randrange(2)
    result = TrialResult(
        NAME, number, actions=[f"{scenario.name}: NaN on rank {rank} at steps {steps}"]
    )
    ends = []
    for name in ("one", "two"):
        run = Run(setup, setup.trial_folder(NAME, number) / name, scenario)
        run.remove()
        run.environment = {
            "CHAOS_NAN_STEPS": ",".join(map(str, steps)),
            "CHAOS_NAN_RANK": str(rank),
        }
        try:
            run.start()
            code = run.wait()
        except TimedOut as timeout:
            result.violations.append(str(timeout))
            return result
        finally:
            run.kill_all()
        result.injected = 1
        if code:
            result.violations.append(f"exit code {code}: {run.last_output}")
            return result
        skipped = _skipped(run)
        result.measurements["skipped"] = len(skipped)
        if skipped != steps:
            result.violations.append(f"skipped {skipped}")
        if run.output.count("skipped") < len(steps):
            result.violations.append("not every skipped step was logged")
        ends.append(read_output(run.folder, step=scenario.steps))
    result.violations += ends[0].differences(ends[1])
    return result


def describe(trials: list[TrialResult]) -> str:
    """Return the text of the table."""
    return f"{len(trials)} pairs of runs, {total(trials, 'skipped')} steps skipped in each"


def _skipped(run: Run) -> list[int]:
    text = (run.folder / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(text_line) for text_line in text.splitlines()]
    return [line["step"] for line in lines if line["kind"] == "skip"]

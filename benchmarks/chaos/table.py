"""One Markdown table of all kinds, with hardware, versions and command."""

from __future__ import annotations

import os
import platform
import statistics
import sys
from collections.abc import Iterable, Iterator
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.chaos.trials import Kind, TrialResult

STACK = ("dtl", "torch", "transformers", "peft", "accelerate", "deepspeed")


def report(
    results: list[tuple[Kind, list[TrialResult]]], *, seed: int, minutes: float
) -> Iterator[str]:
    """Yield the lines of the page."""
    yield "# Fault injection"
    yield ""
    yield (
        "Real runs of tiny models with faults drawn from a seed. All requirements must hold. "
        "Bitwise: every file of the last checkpoint, the exported weights, losses, gradient norms, "
        "scores and digests of the data order equal those of the same run without faults."
    )
    yield ""
    yield "| kind | requirement | passed | measured |"
    yield "|---|---|---|---|"
    for kind, trials in results:
        yield row(kind, trials)
    yield ""
    for kind, trials in results:
        for trial in trials:
            if trial.violations and not kind.is_baseline:
                yield f"- `--seed {seed} --repeat {kind.name}:{trial.number}`: " + format_failure(
                    trial
                )
    yield f"- date: {date.today()}, {minutes:.0f} minutes"
    yield f"- hardware: {_hardware()}"
    yield f"- versions: Python {platform.python_version()}, {_versions()}"
    yield f"- command: `python -m benchmarks.chaos {' '.join(sys.argv[1:])}`"


def row(kind: Kind, trials: list[TrialResult]) -> str:
    """Return the row of one kind."""
    missing = next((trial.skip_reason for trial in trials if trial.skip_reason), "")
    counted = [trial for trial in trials if trial.injected]
    held = sum(not trial.violations for trial in counted)
    if missing:
        return f"| {kind.name} | {kind.requirement} | not run | {missing} |"
    passed = f"{held} of {len(counted)}"
    return f"| {kind.name} | {kind.requirement} | {passed} | {kind.describe(counted)} |"


def format_failure(trial: TrialResult) -> str:
    """Return a failed trial in one line: actions and violations."""
    return f"{'; '.join(trial.actions) or 'no action'}: **{'; '.join(trial.violations)}**"


def all_passed(results: list[tuple[Kind, list[TrialResult]]]) -> bool:
    """Whether every trial passed, and enough faults were injected."""
    for kind, trials in results:
        if kind.is_baseline or any(trial.skip_reason for trial in trials):
            continue
        if any(trial.violations for trial in trials):
            return False
        if sum(trial.injected for trial in trials) < kind.required:
            return False
    return True


def total(trials: list[TrialResult], name: str) -> int:
    """Return the sum of a measurement over the trials."""
    return sum(collect(trials, name))


def median_seconds(values: Iterable[float]) -> str:
    """Return the median as text."""
    numbers = list(values)
    return f"{statistics.median(numbers):.1f} s" if numbers else "not measured"


def count_values(trials: list[TrialResult], name: str) -> str:
    """Count each value of a measurement, which may be a list: `3 start-up, 2 save`."""
    values = collect(trials, name)
    return ", ".join(f"{values.count(value)} {value}" for value in sorted(set(values)))


def collect(trials: list[TrialResult], name: str) -> list[Any]:
    """Return the values of a measurement, over all trials."""
    values = [trial.measurements[name] for trial in trials if name in trial.measurements]
    return [one for value in values for one in (value if isinstance(value, list) else [value])]


def _versions() -> str:
    return ", ".join(f"{name} {metadata.version(name)}" for name in STACK)


def _hardware() -> str:
    """Return processor and number of cores."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"

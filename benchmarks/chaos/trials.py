"""Trials: their results, their kinds, and how many of them run."""

from __future__ import annotations

import json
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.chaos.setup import Setup

MAX_TRIES = 3  # trials may miss their moment: so many times the required number are tried


@dataclass
class TrialResult:
    """The result of a trial. `injected`: faults that took effect. `violations`: what failed."""

    kind: str
    number: int
    injected: int = 0
    actions: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    measurements: dict[str, Any] = field(default_factory=dict)
    skip_reason: str = ""  # why this trial cannot run here


@dataclass(frozen=True)
class Kind:
    """A kind of trial. `required`: faults to inject, over all its trials."""

    name: str
    requirement: str  # what must hold, in short
    run_trial: Callable[[Setup, int], TrialResult]
    required: int
    describe: Callable[[list[TrialResult]], str]  # returns the text of the table
    is_exclusive: bool = False  # whether only one of its trials may run at a time
    is_baseline: bool = False  # of another tool: recorded, but without requirements


class Store:
    """Results on disk, one JSON object per line, so that a second call continues the first."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path, self.seed = path, seed
        self._lock = threading.Lock()

    def add(self, trial: TrialResult) -> None:
        with self._lock, self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"seed": self.seed, **asdict(trial)}) + "\n")

    def trials(self, kind: str) -> dict[int, TrialResult]:
        """Return the results of this seed, by number; the newest counts."""
        if not self.path.exists():
            return {}
        lines = map(json.loads, self.path.read_text(encoding="utf-8").splitlines())
        mine = [line for line in lines if line.pop("seed") == self.seed and line["kind"] == kind]
        return {line["number"]: TrialResult(**line) for line in mine}


def run_kind(kind: Kind, setup: Setup, store: Store, *, jobs: int) -> list[TrialResult]:
    """Run trials by number until enough faults are injected."""
    done = store.trials(kind.name)
    lock = threading.Lock()
    running: set[int] = set()
    numbers = iter(number for number in range(kind.required * MAX_TRIES) if number not in done)

    def next_number() -> int | None:
        with lock:
            injected = sum(trial.injected for trial in done.values()) + len(running)
            missing = any(trial.skip_reason for trial in done.values())
            number = None if injected >= kind.required or missing else next(numbers, None)
            running.update(() if number is None else (number,))
            return number

    def work() -> None:
        while (number := next_number()) is not None:
            trial = run_one(kind, setup, number)
            store.add(trial)
            with lock:
                running.discard(number)
                done[number] = trial

    workers = 1 if kind.is_exclusive else jobs
    with ThreadPoolExecutor(max_workers=workers) as pool:
        for worker in [pool.submit(work) for _ in range(workers)]:
            worker.result()
    return [done[number] for number in sorted(done)]


def run_one(kind: Kind, setup: Setup, number: int) -> TrialResult:
    """Run one trial; an exception in it is a violation and does not end the others."""
    try:
        trial = kind.run_trial(setup, number)
    except Exception as fault:
        text = traceback.format_exc()
        trial = TrialResult(
            kind.name, number, injected=1, violations=[f"{type(fault).__name__}: {fault}"]
        )
        trial.measurements["traceback"] = text
    failing = "recorded" if kind.is_baseline else "FAILED"
    state = failing if trial.violations else "missed" if not trial.injected else "ok"
    print(
        f"{trial.kind}:{number} {state}: {'; '.join([*trial.actions, *trial.violations])}",
        flush=True,
    )
    return trial

"""Trials: what one is, what it found, and how many of them are run and remembered."""

from __future__ import annotations

import json
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.chaos.bed import Bed

SPARE = 3  # trials may miss their moment: so many times more are tried than wanted


@dataclass
class Trial:
    """One trial. `landed`: faults that hit; `broken`: what had to hold and did not."""

    kind: str
    number: int
    landed: int = 0
    did: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    found: dict[str, Any] = field(default_factory=dict)
    missing: str = ""  # why this trial cannot be made here


@dataclass(frozen=True)
class Kind:
    """One kind of trial. `wanted`: faults that have to land, over all trials together."""

    name: str
    holds: str  # what must hold, in a few words
    trial: Callable[[Bed, int], Trial]
    wanted: int
    line: Callable[[list[Trial]], str]  # what the table says of the trials
    alone: bool = False  # whether its trials may not run side by side
    yardstick: bool = False  # another tool's: told, but nothing has to hold


class Store:
    """Trials on disk, a JSON object a line, so that a second call goes on where one ended."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path, self.seed = path, seed
        self._lock = threading.Lock()

    def add(self, trial: Trial) -> None:
        with self._lock, self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"seed": self.seed, **asdict(trial)}) + "\n")

    def trials(self, kind: str) -> dict[int, Trial]:
        """Those of this seed, by number; the newest counts."""
        if not self.path.exists():
            return {}
        lines = map(json.loads, self.path.read_text(encoding="utf-8").splitlines())
        mine = [line for line in lines if line.pop("seed") == self.seed and line["kind"] == kind]
        return {line["number"]: Trial(**line) for line in mine}


def run_kind(kind: Kind, bed: Bed, store: Store, *, jobs: int) -> list[Trial]:
    """Trials by number until enough faults have landed."""
    done = store.trials(kind.name)
    lock = threading.Lock()
    running: set[int] = set()
    numbers = iter(number for number in range(kind.wanted * SPARE) if number not in done)

    def next_number() -> int | None:
        with lock:
            landed = sum(trial.landed for trial in done.values()) + len(running)
            missing = any(trial.missing for trial in done.values())
            number = None if landed >= kind.wanted or missing else next(numbers, None)
            running.update(() if number is None else (number,))
            return number

    def work() -> None:
        while (number := next_number()) is not None:
            trial = run_one(kind, bed, number)
            store.add(trial)
            with lock:
                running.discard(number)
                done[number] = trial

    workers = 1 if kind.alone else jobs
    with ThreadPoolExecutor(max_workers=workers) as pool:
        for worker in [pool.submit(work) for _ in range(workers)]:
            worker.result()
    return [done[number] for number in sorted(done)]


def run_one(kind: Kind, bed: Bed, number: int) -> Trial:
    """One trial; what goes wrong in it is a finding, not the end of all."""
    try:
        trial = kind.trial(bed, number)
    except Exception as fault:
        told = traceback.format_exc()
        trial = Trial(kind.name, number, landed=1, broken=[f"{type(fault).__name__}: {fault}"])
        trial.found["traceback"] = told
    failing = "told" if kind.yardstick else "BROKEN"
    state = failing if trial.broken else "missed" if not trial.landed else "ok"
    print(f"{trial.kind}:{number} {state}: {'; '.join([*trial.did, *trial.broken])}", flush=True)
    return trial

"""Limits of files and disks, wrong clocks, simultaneous starts, tasks of other launchers."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from benchmarks.chaos import commands
from benchmarks.chaos.any_file import _expected
from benchmarks.chaos.setup import Setup
from benchmarks.chaos.table import count_values
from benchmarks.chaos.trials import TrialResult

NAME = "limit"
REQUIREMENT = "one message and an exit code; without the limit the same command ends bitwise equal"


def run_trial(setup: Setup, number: int) -> TrialResult:
    """Train under one limit, then without it."""
    way = list(WAYS)[number % len(WAYS)]
    result = TrialResult(NAME, number, injected=1, actions=[way], measurements={"way": way})
    folder = setup.trial_folder("limit", number)
    commands.copy_template(setup, "interrupted" if way == "clock" else "empty", folder)
    result.violations += WAYS[way](setup, folder, setup.rng(NAME, number))
    answer = commands.run(setup, folder, commands.TRAIN)
    result.violations += answer.violations
    if answer.codes != [0]:
        result.violations.append(f"without the limit: {answer.codes}: {answer.output[-300:]}")
    else:
        found = commands.read_result(folder)
        result.violations += commands.find_silent_differences(found, _expected(setup), output="")
    subprocess.run(["umount", "-q", str(folder / "runs")], check=False, stderr=subprocess.DEVNULL)
    return result


def describe(trials: list[TrialResult]) -> str:
    """Return the text of the table."""
    return f"{len(trials)} trials ({count_values(trials, 'way')})"


def _limited(name: str, smallest: int, largest: int) -> Callable[[Setup, Path, Random], list[str]]:
    def train(setup: Setup, folder: Path, rng: Random) -> list[str]:
        limits = {name: rng.randrange(smallest, largest)}
        return list(commands.run(setup, folder, commands.TRAIN, limits=limits).violations)

    return train


def _mounted(
    option: str, smallest: int, largest: int
) -> Callable[[Setup, Path, Random], list[str]]:
    def train(setup: Setup, folder: Path, rng: Random) -> list[str]:
        runs = folder / "runs"
        runs.mkdir()
        value = rng.randrange(smallest, largest)
        _mount(runs, f"{option}={value}")
        faults = list(commands.run(setup, folder, commands.TRAIN).violations)
        _mount(runs, f"remount,{option}={value * 50}")
        return faults

    return train


def _mount(folder: Path, options: str) -> None:
    argv = ["mount", "-t", "tmpfs", "-o", options, "dtl-chaos", str(folder)]
    subprocess.run(argv, check=True, capture_output=True)


def _read_only(setup: Setup, folder: Path, rng: Random) -> list[str]:
    runs = folder / "runs"
    runs.mkdir()
    _mount(runs, "size=50m,ro")
    faults = list(commands.run(setup, folder, commands.TRAIN).violations)
    _mount(runs, "remount,size=50m,rw")
    return faults


def _clock(setup: Setup, folder: Path, rng: Random) -> list[str]:
    """A lease of another host, whose clock is wrong by up to years."""
    offset = rng.choice((1, -1)) * 10 ** rng.uniform(2, 9)
    holder = {"token": "x", "host": "elsewhere", "process": 1, "heartbeat": time.time() + offset}
    (folder / "runs/run/lease.json").write_text(json.dumps(holder), encoding="utf-8")
    answer = commands.run(setup, folder, ("resume", "runs/run"))
    faults = list(answer.violations)
    return faults if answer.codes == [0] else [*faults, f"no start: {answer.output[-200:]}"]


def _race(setup: Setup, folder: Path, rng: Random) -> list[str]:
    """Several starts at once: one trains, the others say so."""
    answer = commands.run_together(setup, folder, [commands.TRAIN] * rng.choice((2, 3)))
    faults = list(answer.violations)
    words = ("another process", "is writing the folder", "is finished", "at the same time")
    if 0 not in answer.codes:
        faults.append(f"no start succeeded: {answer.output[-300:]}")
    if any(answer.codes) and not any(word in answer.output for word in words):
        faults.append(f"the loser does not say why: {answer.output[-300:]}")
    return faults


def _tasks(setup: Setup, folder: Path, rng: Random) -> list[str]:
    """Two tasks of srun that each run `dtl train`: both are refused, and nothing is made."""
    task = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_LOCALID": "0"}
    environment = {**task, "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"}
    answer = commands.run_together(setup, folder, [commands.TRAIN] * 2, environment=environment)
    faults = list(answer.violations)
    if answer.codes != [2, 2] or (folder / "runs").exists():
        faults.append(f"tasks that start one run were not refused: {answer.codes}")
    return faults


WAYS: dict[str, Callable[[Setup, Path, Random], list[str]]] = {
    "file size": _limited("RLIMIT_FSIZE", 200, 60_000),
    "open files": _limited("RLIMIT_NOFILE", 12, 60),
    "simultaneous starts": _race,
    "clock": _clock,
    "tasks of srun": _tasks,
}
if os.geteuid() == 0:
    WAYS |= {
        "disk": _mounted("size", 8_192, 400_000),
        "inodes": _mounted("nr_inodes", 3, 40),
        "read-only disk": _read_only,
    }

"""The disk fills up while a run saves: one clear message, an older whole checkpoint, and it goes on
when there is room again."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

from benchmarks.chaos.outputs import find_differences, reference_output
from benchmarks.chaos.runs import Run, TimedOut
from benchmarks.chaos.setup import SCENARIOS, SINGLE_PROCESS, Scenario, Setup
from benchmarks.chaos.trials import TrialResult

NAME = "disk"
REQUIREMENT = "names the full disk once, older checkpoint whole, goes on bitwise when there is room"
CASES: tuple[Scenario, ...] = (SINGLE_PROCESS, *SCENARIOS[:3])
KEEP = ("train.keep_last=2", "train.save_every=10")
ROOM = 2.4  # checkpoints that fit: the third is written while two are kept
OTHER_BYTES = 160_000  # the rest of a run folder


def run_trial(setup: Setup, number: int) -> TrialResult:
    """A run on a small file system."""
    scenario = CASES[number % len(CASES)]
    result = TrialResult(NAME, number, actions=[scenario.name])
    run = Run(setup, setup.trial_folder(NAME, number), scenario, KEEP)
    expected = reference_output(setup, scenario, KEEP)
    run.remove()
    mount = run.folder.parent
    mount.mkdir(parents=True)
    size = int(_checkpoint_bytes(setup, scenario) * ROOM) + OTHER_BYTES
    if os.geteuid() or not _mount(mount, f"size={size}"):
        result.skip_reason = "a small file system needs root and the right to mount"
        return result
    try:
        result.injected = 1
        result.violations += _fill(run)
        _mount(mount, f"remount,size={size * 20}")
        run.start()
        code = run.wait()
        if code:
            result.violations.append(f"with room it ended with {code}: {run.last_output}")
        else:
            result.violations += find_differences(run, expected)
    except TimedOut as timeout:
        result.violations.append(str(timeout))
    finally:
        run.kill_all()
        subprocess.run(["umount", str(mount)], check=False)
    if not result.violations:
        run.remove()
    return result


def describe(trials: list[TrialResult]) -> str:
    """What the table says."""
    return f"{len(trials)} layouts on a tmpfs with room for {ROOM} checkpoints"


def _fill(run: Run) -> list[str]:
    """Run into the full disk; what does not hold."""
    run.start()
    code = run.wait()
    faults = [f"{left} after a full disk" for left in run.find_leftovers()]
    told = run.output.splitlines()
    naming = [text for text in told if "disk is full" in text or "No space left" in text]
    if code in (0, 75):
        faults.append(f"exit code {code} on a full disk")
    if len(naming) != 1 or any("Traceback" in text for text in told):
        faults.append(f"the full disk is named in {len(naming)} lines: {run.last_output}")
    newest = max(run.checkpoints.glob("step-*"), default=None)
    if newest is None or not is_intact(newest):
        faults.append(f"the newest checkpoint is not whole ({newest})")
    return faults


def is_intact(checkpoint: Path) -> bool:
    """Every file is there with the hash that the manifest has."""
    files = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))["files"]
    return all(
        hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() == seal["sha256"]
        for name, seal in files.items()
    )


def _checkpoint_bytes(setup: Setup, scenario: Scenario) -> int:
    name = "-".join([scenario.name.replace(" ", "-"), *KEEP])
    folder = setup.folder / "references" / name / "runs" / "run" / "checkpoints"
    newest = max(folder.glob("step-*"))
    return sum(file.stat().st_size for file in newest.iterdir())


def _mount(where: Path, options: str) -> bool:
    argv = ["mount", "-t", "tmpfs", "-o", options, "dtl-chaos", str(where)]
    return subprocess.run(argv, check=False, capture_output=True).returncode == 0

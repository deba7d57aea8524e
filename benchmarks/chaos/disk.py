"""The disk fills up while a run saves: an older checkpoint stays intact, and the run resumes.

There is one clear message, and the run resumes when there is space.
"""

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
REQUIREMENT = (
    "names the full disk once, an older checkpoint is intact, resumes bitwise equal with space"
)
CASES: tuple[Scenario, ...] = (SINGLE_PROCESS, *SCENARIOS[:3])
KEEP = ("train.keep_last=2", "train.save_every=10")
SPACE = 2.4  # checkpoints that fit: the third is written while two exist
OTHER_BYTES = 160_000  # the rest of a run folder


def run_trial(setup: Setup, number: int) -> TrialResult:
    """Run on a small file system."""
    scenario = CASES[number % len(CASES)]
    result = TrialResult(NAME, number, actions=[scenario.name])
    run = Run(setup, setup.trial_folder(NAME, number), scenario, KEEP)
    expected = reference_output(setup, scenario, KEEP)
    run.remove()
    mount = run.folder.parent
    mount.mkdir(parents=True)
    size = int(_checkpoint_bytes(setup, scenario) * SPACE) + OTHER_BYTES
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
            result.violations.append(f"with space it ended with {code}: {run.last_output}")
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
    """Return the text of the table."""
    return f"{len(trials)} layouts on a tmpfs with space for {SPACE} checkpoints"


def _fill(run: Run) -> list[str]:
    """Run until the disk is full; return what is wrong."""
    run.start()
    code = run.wait()
    faults = [f"{left} after a full disk" for left in run.find_leftovers()]
    lines = run.output.splitlines()
    naming = [text for text in lines if "disk is full" in text or "No space left" in text]
    if code in (0, 75):
        faults.append(f"exit code {code} on a full disk")
    if len(naming) != 1 or any("Traceback" in text for text in lines):
        faults.append(f"the full disk is named in {len(naming)} lines: {run.last_output}")
    newest = max(run.checkpoints.glob("step-*"), default=None)
    if newest is None or not is_intact(newest):
        faults.append(f"the newest checkpoint is not intact ({newest})")
    return faults


def is_intact(checkpoint: Path) -> bool:
    """Whether every file has the hash that is in the manifest."""
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

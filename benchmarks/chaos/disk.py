"""The disk fills up while a run saves: one clear message, an older whole checkpoint, and it goes on
when there is room again."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

from benchmarks.chaos.bed import ALONE, SCENES, Bed, Scene
from benchmarks.chaos.ends import faults_of_end, reference
from benchmarks.chaos.runs import Hung, Run
from benchmarks.chaos.trials import Trial

NAME = "disk"
HOLDS = "names the full disk once, older checkpoint whole, goes on bitwise when there is room"
CASES: tuple[Scene, ...] = (ALONE, *SCENES[:3])
KEEP = ("train.keep_last=2", "train.save_every=10")
ROOM = 2.4  # checkpoints that fit: the third is written while two are kept
OTHER_BYTES = 160_000  # the rest of a run folder


def trial(bed: Bed, number: int) -> Trial:
    """A run on a small file system."""
    scene = CASES[number % len(CASES)]
    found = Trial(NAME, number, did=[scene.name])
    run = Run(bed, bed.place(NAME, number), scene, KEEP)
    expected = reference(bed, scene, KEEP)
    run.remove()
    mount = run.folder.parent
    mount.mkdir(parents=True)
    size = int(_checkpoint_bytes(bed, scene) * ROOM) + OTHER_BYTES
    if os.geteuid() or not _mount(mount, f"size={size}"):
        found.missing = "a small file system needs root and the right to mount"
        return found
    try:
        found.landed = 1
        found.broken += _fill(run)
        _mount(mount, f"remount,size={size * 20}")
        run.start()
        code = run.wait()
        if code:
            found.broken.append(f"with room it ended with {code}: {run.last_words}")
        else:
            found.broken += faults_of_end(run, expected)
    except Hung as hung:
        found.broken.append(str(hung))
    finally:
        run.end_all()
        subprocess.run(["umount", str(mount)], check=False)
    if not found.broken:
        run.remove()
    return found


def line(trials: list[Trial]) -> str:
    """What the table says."""
    return f"{len(trials)} layouts on a tmpfs with room for {ROOM} checkpoints"


def _fill(run: Run) -> list[str]:
    """Run into the full disk; what does not hold."""
    run.start()
    code = run.wait()
    faults = [f"{left} after a full disk" for left in run.leftovers()]
    told = run.told.splitlines()
    naming = [text for text in told if "disk is full" in text or "No space left" in text]
    if code in (0, 75):
        faults.append(f"exit code {code} on a full disk")
    if len(naming) != 1 or any("Traceback" in text for text in told):
        faults.append(f"the full disk is named in {len(naming)} lines: {run.last_words}")
    newest = max(run.checkpoints.glob("step-*"), default=None)
    if newest is None or not is_whole(newest):
        faults.append(f"the newest checkpoint is not whole ({newest})")
    return faults


def is_whole(checkpoint: Path) -> bool:
    """Every file is there with the hash that the manifest has."""
    files = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))["files"]
    return all(
        hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() == seal["sha256"]
        for name, seal in files.items()
    )


def _checkpoint_bytes(bed: Bed, scene: Scene) -> int:
    name = "-".join([scene.name.replace(" ", "-"), *KEEP])
    folder = bed.folder / "references" / name / "runs" / "run" / "checkpoints"
    newest = max(folder.glob("step-*"))
    return sum(file.stat().st_size for file in newest.iterdir())


def _mount(where: Path, options: str) -> bool:
    argv = ["mount", "-t", "tmpfs", "-o", options, "dtl-chaos", str(where)]
    return subprocess.run(argv, check=False, capture_output=True).returncode == 0

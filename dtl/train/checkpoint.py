"""Checkpoints independent of the layout: trainable weights, optimizer state, progress."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtl.core.errors import DtlError
from dtl.core.files import (
    FileDigest,
    create_staging_folder,
    hash_file,
    publish_new_folder,
    read_json,
    sync_to_disk,
    verify_file,
    write_json,
)
from dtl.train.checkpoint_tensors import tensors_of_rank, write_tensors
from dtl.train.progress import Progress

if TYPE_CHECKING:
    from dtl.engine.base import Engine, LossScalerState

MANIFEST = "manifest.json"
PROGRESS = "progress.json"
LOSS_SCALER = "loss_scaler.json"


@dataclass(frozen=True)
class DamagedCheckpoint:
    """A checkpoint that cannot be used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of one run, in `folder`.

    `identity`: of the run that they belong to; checkpoints of another run count as damaged.
    `previous_identities`: of this run before its config was changed by --allow-change.
    `newest_to_keep`: how many of the newest are retained besides the best. `rollback_steps`:
    steps that the run may have to roll back. `check_lease`: raises where the folder belongs to
    another process by now.
    """

    folder: Path
    identity: str
    previous_identities: tuple[str, ...] = ()
    newest_to_keep: int = 2
    keeps_best: bool = True
    rollback_steps: int | None = None
    check_lease: Callable[[], None] = lambda: None

    def save(self, engine: Engine, progress: Progress) -> Path:
        """Write a checkpoint and return its path; every rank must call. Each rank writes a share of
        the tensors.

        The files are staged, read back and compared, hashed, synced and renamed. Only then are
        older checkpoints removed.
        """
        final = self.step_path(progress.step)
        staged = self.folder / f".staged-{progress.step:08d}"
        if engine.is_main_process:
            self.check_lease()
            self.folder.mkdir(parents=True, exist_ok=True)
            for old in self.folder.glob(".staged-*"):
                shutil.rmtree(old)
            create_staging_folder(staged)
        engine.barrier()
        part = staged / f"part-{engine.rank + 1:05d}.safetensors"
        write_tensors(part, tensors_of_rank(engine))
        files = dict(engine.all_gather_object([(part.name, _sync_and_hash(part))]))
        if engine.is_main_process:
            write_json(staged / PROGRESS, asdict(progress))
            files[PROGRESS] = _sync_and_hash(staged / PROGRESS)
            if (scaler := engine.loss_scaler_state()) is not None:
                write_json(staged / LOSS_SCALER, asdict(scaler))
                files[LOSS_SCALER] = _sync_and_hash(staged / LOSS_SCALER)
            manifest = {"step": progress.step, "run": self.identity, "files": files}
            write_json(staged / MANIFEST, manifest)
            sync_to_disk(staged)
            self.check_lease()
            publish_new_folder(staged, final)
            self._prune(progress)
        engine.barrier()
        return final

    def remove_after(self, step: int) -> None:
        """Remove the checkpoints after a step, newest first, so that a kill leaves no gap."""
        for path in sorted(self.folder.glob("step-*"), reverse=True):
            if path.name > self.step_path(step).name:
                shutil.rmtree(path)

    def step_path(self, step: int) -> Path:
        """Return the path of the checkpoint of a step."""
        return self.folder / f"step-{step:08d}"

    @property
    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in order."""
        return [int(name.removeprefix("step-")) for name in _checkpoint_names(self.folder)]

    def find_newest_intact(
        self, *, last_step: int | None = None
    ) -> tuple[Path | None, list[DamagedCheckpoint]]:
        """Return the newest checkpoint whose files all have their hashes, and newer damaged ones.

        `last_step`: later checkpoints are ignored.
        """
        damaged: list[DamagedCheckpoint] = []
        for path in sorted(self.folder.glob("step-*"), reverse=True):
            if last_step is not None and path.name > self.step_path(last_step).name:
                continue
            reason = self.find_damage(path)
            if reason is None:
                return path, damaged
            damaged.append(DamagedCheckpoint(path, reason))
        return None, damaged

    def find_damage(self, path: Path) -> str | None:
        """Return what is wrong with a checkpoint; None where it is intact and this run's."""
        if path.is_symlink() or (path / MANIFEST).is_symlink():
            return "it is a symbolic link, not what was written"
        try:
            manifest = read_json(path / MANIFEST)
            files = {name: FileDigest(**digest) for name, digest in manifest["files"].items()}
            step, run = int(manifest["step"]), manifest["run"]
        except DtlError as fault:
            return f"its manifest: {fault.faults[0].problem}"
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            return f"its manifest cannot be read ({problem})"
        if path.name != f"step-{step:08d}":
            return f"it contains step {step}"
        if run not in (self.identity, *self.previous_identities):
            return "it belongs to another run"
        return _find_file_damage(path, files)

    def _prune(self, progress: Progress) -> None:
        """Remove the checkpoints that are neither among the newest, nor the best, nor needed for a
        rollback."""
        names = _checkpoint_names(self.folder)
        retained = set(names[-self.newest_to_keep :])
        if self.keeps_best and progress.best_step is not None:
            retained.add(self.step_path(progress.best_step).name)
        if self.rollback_steps is not None:
            target = self.step_path(max(0, progress.step + 1 - self.rollback_steps)).name
            oldest = max((name for name in names if name <= target), default="")
            retained.update(name for name in names if name >= oldest)
        for name in set(names) - retained:
            shutil.rmtree(self.folder / name)


def _checkpoint_names(folder: Path) -> list[str]:
    """Return the folder names of the checkpoints, oldest first."""
    return sorted(path.name for path in folder.glob("step-*"))


def _find_file_damage(path: Path, files: dict[str, FileDigest]) -> str | None:
    present = {entry.name for entry in path.iterdir()} - {MANIFEST}
    if present != set(files):
        return f"files missing or unknown: {', '.join(sorted(present ^ set(files)))}"
    for name, digest in files.items():
        file = path / name
        if file.is_symlink() or not file.is_file():
            return f"{name} is not a regular file"
        if reason := verify_file(file, digest):
            return reason
    return None


def read_progress(path: Path) -> Progress:
    """Return the progress of a checkpoint."""
    return Progress(**read_json(path / PROGRESS))


def read_loss_scaler_state(path: Path) -> LossScalerState | None:
    """Return the state of fp16's loss scaler in a checkpoint; None where it was another dtype."""
    from dtl.engine.base import LossScalerState

    file = path / LOSS_SCALER
    if not file.is_file():
        return None
    return LossScalerState(**read_json(file))


def size_on_disk(path: Path) -> int:
    """Return the size of a checkpoint in bytes."""
    return sum(file.stat().st_size for file in path.iterdir())


def _sync_and_hash(file: Path) -> dict[str, Any]:
    """Sync a file to disk; return its size and hash."""
    sync_to_disk(file)
    return asdict(hash_file(file))

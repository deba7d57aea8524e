"""Checkpoints that know no layout: learning weights, moments and progress, whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from safetensors import safe_open
from safetensors.torch import save_file

from dtl.core.errors import RunFailed
from dtl.run.folder import write_json
from dtl.train.loop import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from dtl.engine.base import Engine

MANIFEST = "manifest.json"
PROGRESS = "progress.json"


@dataclass(frozen=True)
class Damage:
    """A checkpoint that cannot be used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of one run, in `folder`.

    `identity`: of the run they belong to; another run's are damage. `formerly`: identities that
    this run has had before its config was changed by --allow-change. `keep`: how many of the
    newest stay, beside the best. `reach`: steps that the run may have to go back. `held`: raises
    when the folder is another process's now.
    """

    folder: Path
    identity: str
    formerly: tuple[str, ...] = ()
    keep: int = 2
    keep_best: bool = True
    reach: int | None = None
    held: Callable[[], None] = lambda: None

    def save(self, engine: Engine, progress: Progress) -> Path:
        """Write a checkpoint; every rank must call. Each rank writes its share of the tensors.

        Staged, read back and compared, hashed, synced, renamed; only then are older ones removed.
        """
        final = self.path_of(progress.step)
        staged = self.folder / f".staged-{progress.step:08d}"
        if engine.is_first:
            self.held()
            self.folder.mkdir(parents=True, exist_ok=True)
            for old in self.folder.glob(".staged-*"):
                shutil.rmtree(old)
            staged.mkdir()
        engine.barrier()
        part = staged / f"part-{engine.rank + 1:05d}.safetensors"
        _write_tensors(part, _my_tensors(engine))
        files = dict(engine.all_gather_object([(part.name, _seal(part))]))
        if engine.is_first:
            write_json(staged / PROGRESS, asdict(progress))
            files[PROGRESS] = _seal(staged / PROGRESS)
            manifest = {"step": progress.step, "run": self.identity, "files": files}
            write_json(staged / MANIFEST, manifest)
            sync(staged)
            self.held()
            staged.rename(final)
            sync(self.folder)
            self._prune(progress)
        engine.barrier()
        return final

    def remove_after(self, step: int) -> None:
        """Newer checkpoints, newest first, so that a kill leaves no gap."""
        for path in sorted(self.folder.glob("step-*"), reverse=True):
            if path.name > self.path_of(step).name:
                shutil.rmtree(path)

    def path_of(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    @property
    def steps(self) -> list[int]:
        """Of which there are checkpoints, in order."""
        return [int(name.removeprefix("step-")) for name in _names(self.folder)]

    def newest_whole(self, *, at_most: int | None = None) -> tuple[Path | None, list[Damage]]:
        """The newest checkpoint of which every file has its hash, and the damaged ones above it.

        `at_most`: the newest of these steps only.
        """
        damaged: list[Damage] = []
        for path in sorted(self.folder.glob("step-*"), reverse=True):
            if at_most is not None and path.name > self.path_of(at_most).name:
                continue
            reason = self.fault(path)
            if reason is None:
                return path, damaged
            damaged.append(Damage(path, reason))
        return None, damaged

    def fault(self, path: Path) -> str | None:
        """What is wrong with a checkpoint; None when it is whole and this run's."""
        if path.is_symlink() or (path / MANIFEST).is_symlink():
            return "it is a link, not what was written"
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            files: dict[str, dict[str, Any]] = manifest["files"]
            step, run = int(manifest["step"]), manifest["run"]
        except (OSError, ValueError, KeyError, TypeError) as problem:
            return f"its manifest cannot be read ({problem})"
        if path.name != f"step-{step:08d}":
            return f"it holds step {step}"
        if run not in (self.identity, *self.formerly):
            return "it belongs to another run"
        return _damage_of(path, files)

    def _prune(self, progress: Progress) -> None:
        kept = set(_names(self.folder)[-self.keep :])
        if self.keep_best and progress.best_step is not None:
            kept.add(self.path_of(progress.best_step).name)
        if self.reach is not None:
            far = self.path_of(max(0, progress.step + 1 - self.reach)).name
            oldest = max((name for name in _names(self.folder) if name <= far), default="")
            kept.update(name for name in _names(self.folder) if name >= oldest)
        for name in set(_names(self.folder)) - kept:
            shutil.rmtree(self.folder / name)


def _names(folder: Path) -> list[str]:
    """Of the checkpoints, oldest first."""
    return sorted(path.name for path in folder.glob("step-*"))


def _damage_of(path: Path, files: dict[str, dict[str, Any]]) -> str | None:
    present = {entry.name for entry in path.iterdir()} - {MANIFEST}
    if present != set(files):
        return f"files missing or foreign: {', '.join(sorted(present ^ set(files)))}"
    for name, seal in files.items():
        file = path / name
        if file.is_symlink() or not file.is_file():
            return f"{name} is not a plain file"
        if file.stat().st_size != seal.get("bytes") or _hash(file) != seal.get("sha256"):
            return f"{name} is not what was written"
    return None


def read_progress(path: Path) -> Progress:
    """How far the checkpoint is."""
    return Progress(**json.loads((path / PROGRESS).read_text(encoding="utf-8")))


def size_of(path: Path) -> int:
    """Bytes on disk."""
    return sum(file.stat().st_size for file in path.iterdir())


class Learnt(Protocol):
    """Learning weights (`weight/NAME`) and changed buffers (`buffer/NAME`) by name."""

    def __contains__(self, name: str) -> bool: ...

    def read(self, name: str) -> Tensor: ...


def fill_weights(path: Path, engine: Engine, model: Any) -> None:
    """Copy what has learnt, and the changed buffers, into a model that is not yet prepared."""
    stored = Stored(path)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or f"weight/{name}" in stored:
            engine.write_full_tensor(parameter, stored.read(f"weight/{name}"))
    restore_buffers(stored, model)


def restore_weights(learnt: Learnt, engine: Engine, *, partly: bool = False) -> None:
    """Write learning weights into a prepared engine. Under ZeRO the model itself sees them after
    the next step only: take one that changes nothing, before the buffers and the moments. `partly`:
    those that are there."""
    for name, parameter in engine.trainable_parameters():
        if partly and f"weight/{name}" not in learnt:
            continue
        engine.set_weight(parameter, learnt.read(f"weight/{name}"))


def restore_buffers(learnt: Learnt, model: Any) -> None:
    """Copy the changed buffers into a model."""
    for name, buffer in model.named_buffers():
        if f"buffer/{name}" in learnt:
            buffer.copy_(learnt.read(f"buffer/{name}"))


def restore_moments(path: Path, engine: Engine) -> None:
    """Write moments and step count into a prepared engine whose optimizer has its states."""
    stored = Stored(path)
    updates = read_progress(path).updates
    for name, parameter in engine.trainable_parameters():
        engine.set_moments(parameter, stored.moments(name), step=updates)


class Stored(Learnt):
    """The tensors of a checkpoint by name, over all its parts."""

    def __init__(self, path: Path) -> None:
        self._home: dict[str, Any] = {}
        for part in sorted(path.glob("part-*.safetensors")):
            file = safe_open(str(part), framework="pt")
            self._home |= dict.fromkeys(file.keys(), file)

    def moments(self, name: str) -> dict[str, Tensor]:
        """What the optimizer kept of a parameter; nothing where it never had a gradient."""
        kinds = [key.partition("/")[0] for key in self._home if key.partition("/")[2] == name]
        return {kind: self.read(f"{kind}/{name}") for kind in kinds if kind != "weight"}

    def __contains__(self, name: str) -> bool:
        return name in self._home

    @property
    def weights(self) -> set[str]:
        """Names of the parameters."""
        kinds = (key.partition("/") for key in self._home)
        return {name for kind, _, name in kinds if kind == "weight"}

    def read(self, name: str) -> Tensor:
        tensor: Tensor = self._home[name].get_tensor(name)
        return tensor


def _my_tensors(engine: Engine) -> dict[str, Tensor]:
    """This rank's share; gathering is a collective, so every rank asks for every tensor."""
    mine: dict[str, Tensor] = {}
    loads = [0] * engine.ranks
    for name, parameter in engine.parameters_to_save():
        value = engine.full_tensor(parameter)
        moments = engine.moments(parameter) if parameter.requires_grad else {}
        lightest = loads.index(min(loads))
        loads[lightest] += value.numel()
        if lightest == engine.rank:
            mine[f"weight/{name}"] = value.contiguous()
            mine |= {f"{kind}/{name}": moment.contiguous() for kind, moment in moments.items()}
    if engine.is_first:
        mine |= {f"buffer/{name}": value for name, value in engine.changed_buffers().items()}
    return mine


def _write_tensors(file: Path, tensors: dict[str, Tensor]) -> None:
    """A saved file is read back and compared before it is called saved."""
    save_file(tensors, str(file))
    with safe_open(str(file), framework="pt") as reopened:
        wrong = [name for name, value in tensors.items() if not _same(reopened, name, value)]
    if wrong:
        raise RunFailed.of(
            str(file),
            f"{len(wrong)} of {len(tensors)} tensors read back differ (the first is {wrong[0]})",
            "check the disk; the older checkpoints are as they were",
        )


def _same(reopened: Any, name: str, value: Tensor) -> bool:
    """Bit by bit, so that NaN equals itself."""
    import torch

    found: Tensor = reopened.get_tensor(name)
    bits = [tensor.reshape(-1).view(torch.uint8) for tensor in (found, value)]
    return found.dtype == value.dtype and torch.equal(*bits)


def _seal(file: Path) -> dict[str, Any]:
    """Sync a file to disk; its size and hash."""
    sync(file)
    return {"bytes": file.stat().st_size, "sha256": _hash(file)}


def _hash(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

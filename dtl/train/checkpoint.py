"""Checkpoints that know no layout: learning weights, moments and progress, whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from safetensors.torch import save_file

from dtl.run_folder import write_json
from dtl.train.loop import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from dtl.engine import Engine

MANIFEST = "manifest.json"
PROGRESS = "progress.json"


@dataclass(frozen=True)
class Damage:
    """A checkpoint that cannot be used, and why."""

    path: Path
    reason: str


def save(engine: Engine, folder: Path, progress: Progress, *, keep: int) -> Path:
    """Write a checkpoint; every rank must call. Each rank writes its share of the tensors.

    Staged, hashed, synced, renamed; only then are older ones removed.
    """
    final = folder / f"step-{progress.step:08d}"
    staged = folder / f".staged-{progress.step:08d}"
    if engine.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(".staged-*"):
            shutil.rmtree(old)
        staged.mkdir()
    engine.wait()
    part = staged / f"part-{engine.rank + 1:05d}.safetensors"
    save_file(_my_tensors(engine), str(part))
    files = dict(engine.gather([(part.name, _seal(part))]))
    if engine.is_first:
        write_json(staged / PROGRESS, asdict(progress))
        files[PROGRESS] = _seal(staged / PROGRESS)
        write_json(staged / MANIFEST, {"step": progress.step, "files": files})
        _sync_folder(staged)
        if final.exists():
            shutil.rmtree(final)
        staged.rename(final)
        _sync_folder(folder)
        _prune(folder, keep=keep)
    engine.wait()
    return final


def newest_whole(folder: Path) -> tuple[Path | None, list[Damage]]:
    """The newest checkpoint of which every file has its hash, and the damaged ones above it."""
    damaged: list[Damage] = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        reason = fault(path)
        if reason is None:
            return path, damaged
        damaged.append(Damage(path, reason))
    return None, damaged


def fault(path: Path) -> str | None:
    """What is wrong with a checkpoint; None when it is whole."""
    if path.is_symlink() or (path / MANIFEST).is_symlink():
        return "it is a link, not what was written"
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        files: dict[str, dict[str, Any]] = manifest["files"]
        step = int(manifest["step"])
    except (OSError, ValueError, KeyError, TypeError) as problem:
        return f"its manifest cannot be read ({problem})"
    if path.name != f"step-{step:08d}":
        return f"it holds step {step}"
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


def restore_weights(path: Path, engine: Engine, model: Any) -> None:
    """Copy the learning weights into a model that is not yet prepared."""
    stored = _Stored(path)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            engine.fill(parameter, stored.read(f"weight/{name}"))


def restore_moments(path: Path, engine: Engine) -> None:
    """Write moments and step count into a prepared engine whose optimizer has its states."""
    stored = _Stored(path)
    updates = read_progress(path).updates
    for name, parameter in engine.learning():
        moments = {kind: stored.read(f"{kind}/{name}") for kind in ("exp_avg", "exp_avg_sq")}
        engine.set_moments(parameter, moments, step=updates)


class _Stored:
    """The tensors of a checkpoint by name, over all its parts."""

    def __init__(self, path: Path) -> None:
        self._home: dict[str, Any] = {}
        for part in sorted(path.glob("part-*.safetensors")):
            file = safe_open(str(part), framework="pt")
            self._home |= dict.fromkeys(file.keys(), file)

    def read(self, name: str) -> Tensor:
        tensor: Tensor = self._home[name].get_tensor(name)
        return tensor


def _my_tensors(engine: Engine) -> dict[str, Tensor]:
    """This rank's share; gathering is a collective, so every rank asks for every tensor."""
    mine: dict[str, Tensor] = {}
    loads = [0] * engine.ranks
    for name, parameter in engine.learning():
        value = engine.whole(parameter)
        moments = engine.moments(parameter)
        lightest = loads.index(min(loads))
        loads[lightest] += value.numel()
        if lightest == engine.rank:
            mine[f"weight/{name}"] = value.contiguous()
            mine |= {f"{kind}/{name}": moment.contiguous() for kind, moment in moments.items()}
    return mine


def _seal(file: Path) -> dict[str, Any]:
    """Sync a file to disk; its size and hash."""
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
    return {"bytes": file.stat().st_size, "sha256": _hash(file)}


def _hash(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _prune(folder: Path, *, keep: int) -> None:
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)

"""Damages to a checkpoint, each a function of the folders, drawn from a seed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

FILE_DAMAGES = ("truncate", "zeros", "bit", "delete", "empty", "swap", "link", "folder")
CHECKPOINT_DAMAGES = (
    "extra file",
    "linked checkpoint",
    "older one under a newer name",
    "empty folder",
    "file in place of the folder",
    "foreign checkpoint as a newer one",
    "foreign checkpoint in its place",
    "bit in a key of the manifest",
    "bit in a key of a seal",
    "all but the manifest from the older one",
    "stale staged folder",
    "damaged a second time",
)
OUTER, SEAL = ("files", "step", "progress.json"), ("sha256", "bytes")  # keys of a manifest
HARMLESS = ("stale staged folder",)


@dataclass(frozen=True)
class Damage:
    """One damage. `file`: a file of the newest checkpoint; "" for the complete checkpoint."""

    way: str
    file: str

    def __str__(self) -> str:
        return f"{self.way} {self.file}".strip()


def list_damages(files: list[str]) -> list[Damage]:
    """Return each damage to each file, then the damages to a complete checkpoint."""
    of_files = [Damage(way, file) for file in files for way in FILE_DAMAGES]
    return of_files + [Damage(way, "") for way in CHECKPOINT_DAMAGES]


def draw_damage(number: int, files: list[str]) -> Damage:
    """Return the damage of a trial; its position in the file is drawn."""
    ways = list_damages(files)
    return ways[number % len(ways)]


@dataclass(frozen=True)
class DamagedCheckpoint:
    """The checkpoint that must be rejected, and the one to resume from instead."""

    checkpoint: Path
    fallback: Path


def damage_checkpoint(
    damage: Damage, rng: Random, *, checkpoints: Path, foreign: Path
) -> DamagedCheckpoint:
    """Damage one of the checkpoints. `foreign`: the checkpoints of another run."""
    oldest, older, newest = sorted(checkpoints.glob("step-*"))[-3:]
    if damage.file:
        damage_file(damage, rng, newest=newest, older=older)
        return DamagedCheckpoint(newest, older)
    if damage.way == "foreign checkpoint in its place":
        shutil.rmtree(newest)
        shutil.rmtree(older)
        shutil.copytree(foreign / older.name, older)
        return DamagedCheckpoint(older, oldest)
    damaged = _CHECKPOINT[damage.way](newest, older, foreign, rng)
    return DamagedCheckpoint(damaged, older if damaged == newest else newest)


def damage_file(damage: Damage, rng: Random, *, newest: Path, older: Path) -> None:
    """Damage one file of a checkpoint."""
    _FILE[damage.way](newest / damage.file, older / damage.file, rng)


def _truncate(file: Path, _: Path, rng: Random) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: rng.randrange(1, len(data))])


def _zeros(file: Path, _: Path, rng: Random) -> None:
    data = bytearray(file.read_bytes())
    start = rng.randrange(len(data) - 1)
    length = rng.randrange(1, len(data) - start + 1)
    if not any(data[start : start + length]):  # there were zeros already
        start, length = 0, len(data)
    data[start : start + length] = bytes(length)
    file.write_bytes(data)


def _bit(file: Path, _: Path, rng: Random) -> None:
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def _swap(file: Path, other: Path, rng: Random) -> None:
    mine, yours = file.read_bytes(), other.read_bytes()
    file.write_bytes(yours)
    if rng.random() < 0.5 and file.name.startswith("part-"):  # the older one stays intact
        file.with_name(f"{file.name}.bak").write_bytes(mine)


def _link(file: Path, _: Path, rng: Random) -> None:
    moved = file.parents[2] / f"moved-{rng.randrange(10**6)}-{file.name}"
    shutil.move(file, moved)
    file.symlink_to(moved)


def _folder(file: Path, _: Path, rng: Random) -> None:
    file.unlink()
    file.mkdir()


_FILE: dict[str, Callable[[Path, Path, Random], None]] = {
    "truncate": _truncate,
    "zeros": _zeros,
    "bit": _bit,
    "delete": lambda file, other, rng: file.unlink(),
    "empty": lambda file, other, rng: file.write_bytes(b"") and None,
    "swap": _swap,
    "link": _link,
    "folder": _folder,
}


def _extra_file(newest: Path, older: Path, foreign: Path, rng: Random) -> Path:
    name = rng.choice(["part-00002.safetensors", "optimizer.pt", ".hidden"])
    shutil.copy(newest / "part-00001.safetensors", newest / name)
    return newest


def _linked(newest: Path, older: Path, foreign: Path, rng: Random) -> Path:
    moved = newest.parents[2] / f"moved-{newest.name}"
    shutil.move(newest, moved)
    newest.symlink_to(moved, target_is_directory=True)
    return newest


def _older_as_newer(newest: Path, older: Path, foreign: Path, rng: Random) -> Path:
    step = int(newest.name.removeprefix("step-")) + rng.randint(1, 5)
    later = newest.with_name(f"step-{step:08d}")
    shutil.copytree(older, later)
    return later


def _empty_folder(newest: Path, older: Path, foreign: Path, rng: Random) -> Path:
    shutil.rmtree(newest)
    newest.mkdir()
    return newest


def _file_in_place(newest: Path, older: Path, foreign: Path, rng: Random) -> Path:
    shutil.rmtree(newest)
    newest.write_bytes(b"step")
    return newest


def _foreign_as_newer(newest: Path, older: Path, foreign: Path, rng: Random) -> Path:
    later = max(foreign.glob("step-*"))
    assert later.name > newest.name
    shutil.copytree(later, newest.with_name(later.name))
    return newest.with_name(later.name)


def _two_files(newest: Path, older: Path, foreign: Path, rng: Random) -> Path:
    for name in ("progress.json", "part-00001.safetensors"):
        shutil.copy(older / name, newest / name)
    return newest


def _stale_staged(newest: Path, older: Path, foreign: Path, rng: Random) -> Path:
    staged = newest.with_name(f".staged-{rng.randint(1, 40):08d}")
    shutil.copytree(newest, staged)
    _truncate(staged / "part-00001.safetensors", staged, rng)
    return staged


def _second_time(newest: Path, older: Path, foreign: Path, rng: Random) -> Path:
    """Damage a checkpoint of whose step a damaged one was renamed before."""
    shutil.copytree(newest, newest.with_name(f"damaged-{newest.name}"))
    _bit(newest / "part-00001.safetensors", newest, rng)
    return newest


def _bit_in_key(newest: Path, rng: Random, keys: tuple[str, ...]) -> Path:
    file = newest / "manifest.json"
    data = bytearray(file.read_bytes())
    data[data.index(f'"{rng.choice(keys)}'.encode()) + 1] ^= 1
    file.write_bytes(data)
    return newest


_CHECKPOINT: dict[str, Callable[[Path, Path, Path, Random], Path]] = {
    "extra file": _extra_file,
    "linked checkpoint": _linked,
    "older one under a newer name": _older_as_newer,
    "empty folder": _empty_folder,
    "file in place of the folder": _file_in_place,
    "foreign checkpoint as a newer one": _foreign_as_newer,
    "bit in a key of the manifest": lambda newest, *others: _bit_in_key(newest, others[-1], OUTER),
    "bit in a key of a seal": lambda newest, *others: _bit_in_key(newest, others[-1], SEAL),
    "all but the manifest from the older one": _two_files,
    "stale staged folder": _stale_staged,
    "damaged a second time": _second_time,
}

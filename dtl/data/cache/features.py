"""What a frozen base makes of each example, on disk: written by all ranks, read through a map."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from dtl.core.cache_folder import folder as cache_folder
from dtl.core.errors import DtlError, RunFailed
from dtl.core.lock import Lease
from dtl.data.cache.encoded import INDEX, cache_key, publish

# A bfloat16 is kept as its 16 bits, which numpy has no name for.
DTYPES = {"float32": "<f4", "float16": "<f2", "bfloat16": "<i2", "float64": "<f8"}
Places = dict[str, list[tuple[int, int, int]]]  # a field's examples: number, start, positions


@dataclass(frozen=True)
class Field:
    """A tensor of a base's output, of which an example has (T, *shape). `positions`: which of T are
    kept, all, first or last; whole: an example has `shape` alone."""

    name: str
    positions: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """Of one example: what is kept of a field, (K, *shape), and how many positions there were."""

    values: np.ndarray
    positions: int


class Features:
    """Opened for reading; `features[i]` are the parts of example `i`, by field."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        self.fields = tuple(_field(stored, folder) for stored in index["fields"])
        self._examples, self._parts = int(index["examples"]), int(index["parts"])

    @cached_property
    def _mapped(self) -> dict[str, tuple[np.ndarray, list[np.ndarray]]]:
        """Of each field the places of the examples, and the parts that they are in."""
        return {
            field.name: (
                np.load(self.folder / f"{field.name}.npy", mmap_mode="r"),
                [_map(_file(self.folder, field.name, n), field) for n in range(self._parts)],
            )
            for field in self.fields
        }

    def __len__(self) -> int:
        return self._examples

    def __getitem__(self, index: int) -> dict[str, Part]:
        found = {}
        for field in self.fields:
            places, parts = self._mapped[field.name]
            part, start, positions = places[index].tolist()
            kept = positions if field.positions == "all" else 1
            found[field.name] = Part(parts[part][start : start + kept], positions)
        return found


class Chosen:
    """Those of some of the examples: `chosen[i]` are the features of example `places[i]`."""

    def __init__(self, features: Features, places: np.ndarray) -> None:
        self._features, self._places = features, places

    def __getitem__(self, index: int) -> dict[str, Part]:
        return self._features[int(self._places[index])]


def _field(stored: dict[str, Any], folder: Path) -> Field:
    name, dtype = str(stored["name"]), str(stored["dtype"])
    if dtype not in DTYPES or Path(name).name != name:
        raise RunFailed.of(
            str(folder), f"is not what dtl wrote ({name}: {dtype})", "remove the folder"
        )
    return Field(name, stored["positions"], dtype, tuple(stored["shape"]))


def _map(file: Path, field: Field) -> np.ndarray:
    if file.stat().st_size == 0:  # cannot be mapped
        return np.empty((0, *field.shape), dtype=DTYPES[field.dtype])
    flat = np.memmap(file, dtype=DTYPES[field.dtype], mode="r")
    return np.asarray(flat).reshape(-1, *field.shape)


def _file(folder: Path, name: str, part: int) -> Path:
    return folder / f"{name}.{part}.values"


def features_folder(**made_of: Any) -> Path:
    """Where features lie that depend on all this, and on nothing else."""
    return home() / cache_key(**made_of)


def home() -> Path:
    """Where all features lie."""
    return cache_folder() / "features"


Turn = Literal["made", "ours", "another's"]


def take_turn(folder: Path, held: ExitStack) -> Turn:
    """Whether these features are there already, are to be made here, or are being made by another
    run. Where they are ours, no other run makes them until `held` is closed."""
    if folder.exists():
        return "made"
    try:
        held.enter_context(_making(cache_folder() / "making" / folder.name))
    except (DtlError, FileNotFoundError):  # held, or just removed by who held it
        return "another's"
    return "made" if folder.exists() else "ours"


@contextmanager
def _making(place: Path) -> Iterator[None]:
    place.mkdir(parents=True, exist_ok=True)
    try:
        with Lease(place):
            yield
    finally:
        with suppress(OSError):
            place.rmdir()


def stage(folder: Path, *, writer: str) -> Path:
    """An empty folder beside, in which all ranks write. `writer`: names the run, which is one; what
    it has left there before it was killed is removed."""
    digest = hashlib.sha256(f"{socket.gethostname()}:{writer}".encode()).hexdigest()[:16]
    staged = folder.with_name(f"{folder.name}.{digest}.staged")
    discard(staged)
    staged.mkdir(parents=True)
    return staged


class PartWriter:
    """One rank's part of the features: whole examples, in the order in which they come."""

    def __init__(self, staged: Path, fields: Iterable[Field], *, part: int) -> None:
        self._fields = {field.name: field for field in fields}
        self._paths = {name: _file(staged, name, part) for name in self._fields}
        self._ends = dict.fromkeys(self._fields, 0)
        self.places: Places = {name: [] for name in self._fields}

    def __enter__(self) -> Self:
        with ExitStack() as opening:
            self._files = {
                name: opening.enter_context(path.open("wb")) for name, path in self._paths.items()
            }
            self._open = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        self._open.close()

    def add(self, number: int, parts: dict[str, Part]) -> None:
        for name, part in parts.items():
            self.places[name].append((number, self._ends[name], part.positions))
            self._files[name].write(np.ascontiguousarray(part.values).tobytes())
            self._ends[name] += len(part.values)


def finish(
    staged: Path, folder: Path, fields: Iterable[Field], places: list[Places], *, examples: int
) -> None:
    """Say where each example lies, by the places of all parts, and give the folder its name."""
    fields = tuple(fields)
    for field in fields:
        table = np.full((examples, 3), -1, dtype=np.int64)
        for part, of_part in enumerate(places):
            for number, start, positions in of_part[field.name]:
                table[number] = part, start, positions
        if (table < 0).any():
            raise RuntimeError("an example has no features")
        np.save(staged / f"{field.name}.npy", table)
    index = {
        "fields": [asdict(field) for field in fields],
        "examples": examples,
        "parts": len(places),
    }
    (staged / INDEX).write_text(json.dumps(index), encoding="utf-8")
    publish(staged, folder)


def discard(staged: Path) -> None:
    """Remove what is not to be finished."""
    shutil.rmtree(staged, ignore_errors=True)


def same_extent(extents: np.ndarray, *, batch: int) -> list[np.ndarray]:
    """Every example once, in batches in which none is padded beside a longer one, largest first;
    the same on any layout."""
    largest_first = np.argsort(-extents, kind="stable")
    changes = np.flatnonzero(np.diff(extents[largest_first])) + 1
    return [
        run[start : start + batch]
        for run in np.split(largest_first, changes)
        for start in range(0, len(run), batch)
    ]

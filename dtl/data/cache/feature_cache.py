"""The feature cache: a frozen base's outputs of each example, on disk.

All ranks write it, each one part; it is read through memory maps.
"""

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

from dtl.core.cache_folder import cache_folder
from dtl.core.errors import DtlError, RunFailed
from dtl.core.files import publish_folder
from dtl.core.lock import Lease
from dtl.data.cache.encoded import INDEX_FILE
from dtl.data.cache.store import cache_key

# numpy has no bfloat16, so that its 16 bits are stored as an int16.
DTYPES = {"float32": "<f4", "float16": "<f2", "bfloat16": "<i2", "float64": "<f8"}
# Of each field, by name, for each example: its index, the start of its values, its positions.
FeatureLocations = dict[str, list[tuple[int, int, int]]]


@dataclass(frozen=True)
class FeatureField:
    """A tensor of a base's output, of which an example has (T, *shape). `positions`: which of the
    T are cached ("all", "first" or "last"); "pooled": an example has `shape` without T."""

    name: str
    positions: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class CachedFeature:
    """The cached values of a field for one example, (K, *shape), and its number of positions T."""

    values: np.ndarray
    positions: int


class FeatureCache:
    """A feature cache opened for reading; `cache[i]` are the features of example `i`, by field."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        self.fields = tuple(_parse_field(stored, folder) for stored in index["fields"])
        self._examples, self._parts = int(index["examples"]), int(index["parts"])

    @cached_property
    def _arrays(self) -> dict[str, tuple[np.ndarray, list[np.ndarray]]]:
        """Return, for each field, the locations of the examples and the values of each part."""
        return {
            field.name: (
                np.load(self.folder / f"{field.name}.npy", mmap_mode="r"),
                [
                    _map_values(_values_path(self.folder, field.name, n), field)
                    for n in range(self._parts)
                ],
            )
            for field in self.fields
        }

    def __len__(self) -> int:
        return self._examples

    def __getitem__(self, index: int) -> dict[str, CachedFeature]:
        features = {}
        for field in self.fields:
            locations, parts = self._arrays[field.name]
            part, start, positions = locations[index].tolist()
            end = start + (positions if field.positions == "all" else 1)
            features[field.name] = CachedFeature(parts[part][start:end], positions)
        return features


class FeatureSubset:
    """The features of some examples: `subset[i]` are the features of example `indices[i]`."""

    def __init__(self, cache: FeatureCache, indices: np.ndarray) -> None:
        self._cache, self._indices = cache, indices

    def __getitem__(self, index: int) -> dict[str, CachedFeature]:
        return self._cache[int(self._indices[index])]


def _parse_field(stored: dict[str, Any], folder: Path) -> FeatureField:
    name, dtype = str(stored["name"]), str(stored["dtype"])
    if dtype not in DTYPES or Path(name).name != name:
        raise RunFailed.of(
            str(folder), f"the cache is corrupted ({name}: dtype {dtype})", "remove the folder"
        )
    return FeatureField(name, stored["positions"], dtype, tuple(stored["shape"]))


def _map_values(file: Path, field: FeatureField) -> np.ndarray:
    if file.stat().st_size == 0:  # cannot be mapped
        return np.empty((0, *field.shape), dtype=DTYPES[field.dtype])
    flat = np.memmap(file, dtype=DTYPES[field.dtype], mode="r")
    return np.asarray(flat).reshape(-1, *field.shape)


def _values_path(folder: Path, name: str, part: int) -> Path:
    return folder / f"{name}.{part}.values"


def feature_cache_folder(**key_parts: Any) -> Path:
    """Return the folder of the features that depend on these values, and on nothing else."""
    return feature_caches_folder() / cache_key(**key_parts)


def feature_caches_folder() -> Path:
    """Return the folder of all feature caches."""
    return cache_folder() / "features"


BuildState = Literal["ready", "ours", "other_run"]


def claim_build(folder: Path, lease_stack: ExitStack) -> BuildState:
    """Return whether these features are ready, have to be computed by this run, or are being
    computed by another run. If they are ours, no other run computes them until `lease_stack` is
    closed."""
    if folder.exists():
        return "ready"
    try:
        lease_stack.enter_context(_hold_build_lease(cache_folder() / "making" / folder.name))
    except (DtlError, FileNotFoundError):  # another run has the lease, or just released it
        return "other_run"
    return "ready" if folder.exists() else "ours"


@contextmanager
def _hold_build_lease(lease_folder: Path) -> Iterator[None]:
    lease_folder.mkdir(parents=True, exist_ok=True)
    try:
        with Lease(lease_folder):
            yield
    finally:
        with suppress(OSError):
            lease_folder.rmdir()


def create_staging_folder(folder: Path, *, writer: str) -> Path:
    """Create an empty folder next to the cache's, in which all ranks write. `writer`: identifies
    the run; what it left there when it was killed is removed."""
    digest = hashlib.sha256(f"{socket.gethostname()}:{writer}".encode()).hexdigest()[:16]
    staged = folder.with_name(f"{folder.name}.{digest}.staged")
    remove_staging_folder(staged)
    staged.mkdir(parents=True)
    return staged


class FeatureWriter:
    """Writes one rank's part of a feature cache, example by example."""

    def __init__(self, staged: Path, fields: Iterable[FeatureField], *, part: int) -> None:
        self._fields = {field.name: field for field in fields}
        self._paths = {name: _values_path(staged, name, part) for name in self._fields}
        self._ends = dict.fromkeys(self._fields, 0)
        self.locations: FeatureLocations = {name: [] for name in self._fields}

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

    def add(self, example: int, features: dict[str, CachedFeature]) -> None:
        """Append the features of one example."""
        for name, feature in features.items():
            self.locations[name].append((example, self._ends[name], feature.positions))
            self._files[name].write(np.ascontiguousarray(feature.values).tobytes())
            self._ends[name] += len(feature.values)


def finalize_feature_cache(
    staged: Path,
    folder: Path,
    fields: Iterable[FeatureField],
    locations: list[FeatureLocations],
    *,
    examples: int,
) -> None:
    """Write the locations of the examples, by those of all parts, and publish the folder."""
    fields = tuple(fields)
    for field in fields:
        table = np.full((examples, 3), -1, dtype=np.int64)
        for part, part_locations in enumerate(locations):
            for example, start, positions in part_locations[field.name]:
                table[example] = part, start, positions
        if (table < 0).any():
            raise RuntimeError("an example has no features")
        np.save(staged / f"{field.name}.npy", table)
    index = {
        "fields": [asdict(field) for field in fields],
        "examples": examples,
        "parts": len(locations),
    }
    (staged / INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")
    publish_folder(staged, folder)


def remove_staging_folder(staged: Path) -> None:
    """Remove an unfinished feature cache."""
    shutil.rmtree(staged, ignore_errors=True)


def batch_by_extent(extents: np.ndarray, *, batch: int) -> list[np.ndarray]:
    """Return every example once, in batches of equal extent, so that none is padded to a longer
    one; largest first, independent of the layout. `extents`: shape (N,)."""
    largest_first = np.argsort(-extents, kind="stable")
    changes = np.flatnonzero(np.diff(extents[largest_first])) + 1
    return [
        run[start : start + batch]
        for run in np.split(largest_first, changes)
        for start in range(0, len(run), batch)
    ]

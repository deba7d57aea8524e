"""The feature cache: a frozen base's outputs of each example, on disk.

All ranks write it, each one part; it is read through memory maps.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from dtl.core import files
from dtl.core.cache_folder import cache_folder
from dtl.core.checksums import (
    CheckedFolder,
    ChecksummedFile,
    FileChecksums,
    open_cache_folder,
    open_intact,
    seal_folder,
)
from dtl.core.errors import DtlError
from dtl.core.files import publish_folder, write_text
from dtl.core.lock import Lease
from dtl.data.cache.encoded import INDEX_FILE
from dtl.data.cache.store import (
    CheckedArray,
    cache_key,
    map_verified,
    read_json_verified,
)

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
    """A feature cache opened for reading; `cache[i]` are the features of example `i`, by field.
    The values are verified when they are first read. Raises DamagedFolder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._checked = open_cache_folder(folder)
        index = read_json_verified(self._checked, INDEX_FILE)
        self.fields = tuple(_parse_field(stored, self._checked) for stored in index["fields"])
        self._examples, self._parts = int(index["examples"]), int(index["parts"])
        self._arrays = self._map_arrays()

    def _map_arrays(self) -> dict[str, tuple[np.ndarray, list[CheckedArray]]]:
        """Return, for each field, the locations of the examples, shape (N, 3), and the values of
        each part."""
        return {
            field.name: (
                map_verified(self._checked, _locations_file(field.name), "<i8").reshape(-1, 3),
                [
                    CheckedArray(
                        self._checked,
                        _values_file(field.name, part),
                        DTYPES[field.dtype],
                        shape=field.shape,
                    )
                    for part in range(self._parts)
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
            features[field.name] = CachedFeature(parts[part].read(start, end), positions)
        return features


class FeatureSubset:
    """The features of some examples: `subset[i]` are the features of example `indices[i]`."""

    def __init__(self, cache: FeatureCache, indices: np.ndarray) -> None:
        self._cache, self._indices = cache, indices

    def __getitem__(self, index: int) -> dict[str, CachedFeature]:
        return self._cache[int(self._indices[index])]


def _parse_field(stored: dict[str, Any], folder: CheckedFolder) -> FeatureField:
    name, dtype = str(stored["name"]), str(stored["dtype"])
    if dtype not in DTYPES or Path(name).name != name:
        raise folder.damage(f"the field {name} has dtype {dtype}")
    return FeatureField(name, stored["positions"], dtype, tuple(stored["shape"]))


def _values_file(name: str, part: int) -> str:
    return f"{name}.{part}.values"


def _locations_file(name: str) -> str:
    return f"{name}.locations"


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
    if open_intact(folder, FeatureCache) is not None:
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
    files.create_staging_folder(staged)
    return staged


@dataclass(frozen=True)
class WrittenPart:
    """One rank's part of a feature cache: where it has the features of its examples, and the
    checksums of its files, by name."""

    locations: FeatureLocations
    checksums: dict[str, FileChecksums]


class FeatureWriter:
    """Writes one rank's part of a feature cache, example by example."""

    def __init__(self, staged: Path, fields: Iterable[FeatureField], *, part: int) -> None:
        self._fields = {field.name: field for field in fields}
        self._paths = {name: staged / _values_file(name, part) for name in self._fields}
        self._ends = dict.fromkeys(self._fields, 0)
        self._locations: FeatureLocations = {name: [] for name in self._fields}

    def __enter__(self) -> Self:
        with ExitStack() as opening:
            self._files = {
                name: opening.enter_context(ChecksummedFile(path, syncs=True))
                for name, path in self._paths.items()
            }
            self._open = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @property
    def written(self) -> WrittenPart:
        """What has been written."""
        checksums = {self._paths[name].name: file.checksums for name, file in self._files.items()}
        return WrittenPart(self._locations, checksums)

    def add(self, example: int, features: dict[str, CachedFeature]) -> None:
        """Append the features of one example."""
        for name, feature in features.items():
            self._locations[name].append((example, self._ends[name], feature.positions))
            self._files[name].write(np.ascontiguousarray(feature.values).tobytes())
            self._ends[name] += len(feature.values)


def finalize_feature_cache(
    staged: Path,
    folder: Path,
    fields: Iterable[FeatureField],
    parts: list[WrittenPart],
    *,
    examples: int,
) -> None:
    """Write the locations of the examples, by those of all parts, and publish the folder."""
    fields = tuple(fields)
    checksums = {name: each for part in parts for name, each in part.checksums.items()}
    for field in fields:
        table = np.full((examples, 3), -1, dtype="<i8")
        for part, written in enumerate(parts):
            for example, start, positions in written.locations[field.name]:
                table[example] = part, start, positions
        if (table < 0).any():
            raise RuntimeError("an example has no features")
        with ChecksummedFile(staged / _locations_file(field.name)) as file:
            file.write(table.tobytes())
        checksums[_locations_file(field.name)] = file.checksums
    index = {
        "fields": [asdict(field) for field in fields],
        "examples": examples,
        "parts": len(parts),
    }
    write_text(staged / INDEX_FILE, json.dumps(index), sync=False)
    seal_folder(staged, checksums)
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

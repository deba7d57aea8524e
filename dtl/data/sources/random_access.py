"""Rows of one local file read singly, each where it stands; each suffix has its seeker."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dtl.core.errors import DtlError
from dtl.core.units import format_bytes
from dtl.data.sources.formats import (
    READERS,
    FileFault,
    Item,
    Spot,
    Spots,
    first_line,
    header_of,
    json_line_at,
    json_line_spots,
    separated_row_at,
    separated_spots,
    starts_with,
    table_rows,
    unopened,
)

LARGEST_GROUP = 64 * 2**20  # bytes of a Parquet row group: it is read whole for one of its rows
GROUPS_KEPT = 4  # decoded row groups, of all files together
TABLES_KEPT = 64  # open tables


@dataclass(frozen=True)
class Version:
    """What of a file changes when somebody writes into it or puts another in its place."""

    path: Path
    numbers: tuple[int, ...]

    @classmethod
    def of(cls, path: Path) -> Version:
        found = path.stat()
        return cls(path, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))


@dataclass(frozen=True)
class Seeker(ABC):
    """One file, as it is when this is made. `shown`: its name, as places begin with it."""

    version: Version
    shown: str

    @property
    def path(self) -> Path:
        return self.version.path

    @abstractmethod
    def spots(self) -> Spots:
        """Every row in order, with where it stands."""

    @abstractmethod
    def read(self, spot: Spot) -> Item:
        """The row that stands there."""

    def at(self, spot: Spot) -> Item:
        """The row that stands there; a fault where the file is no longer what it was."""
        try:
            if Version.of(self.path) != self.version:
                return FileFault(
                    self.shown,
                    "has changed since the run was started",
                    "put back what was there, and resume",
                )
            return self.read(spot)
        except OSError as fault:
            return unopened(self.shown, fault)
        except (ValueError, LookupError) as fault:  # of pyarrow
            problem = f"cannot be read ({first_line(fault)})"
            return FileFault(self.shown, problem, "put back what was there, and resume")


@dataclass(frozen=True)
class JsonLines(Seeker):
    """A JSON object a line."""

    def spots(self) -> Spots:
        return json_line_spots(self.path, self.shown)

    def read(self, spot: Spot) -> Item:
        return json_line_at(spot, self.path, f"{self.shown}:{spot.number}")


@dataclass(frozen=True)
class Separated(Seeker):
    """Separated text with a header."""

    separator: str

    def spots(self) -> Spots:
        return separated_spots(self.path, self.shown, separator=self.separator)

    def read(self, spot: Spot) -> Item:
        place = f"{self.shown}:{spot.number}"
        return separated_row_at(
            spot, self.path, place, header=self._header, separator=self.separator
        )

    @cached_property
    def _header(self) -> list[str]:
        return header_of(self.path, separator=self.separator)


@dataclass(frozen=True)
class Table(Seeker):
    """A Parquet or Arrow file. `batch_of`: the batch with a row, and the row's place in it."""

    batch_of: Callable[[Version, int], tuple[Any, int]]

    def spots(self) -> Spots:
        rows = READERS[self.path.suffix.lower()](self.path, self.shown)
        return ((Spot(number, number + 1), item) for number, item in enumerate(rows))

    def read(self, spot: Spot) -> Item:
        batch, place = self.batch_of(self.version, spot.offset)
        return next(table_rows([batch.slice(place, 1)], self.shown, after=spot.offset))


def seekers_of(paths: list[Path], shown: list[str], *, place: str) -> tuple[Seeker, ...]:
    """One for each file. Raises DtlError, at the key that names them, for a file of which no single
    row can be read."""
    return tuple(_seeker(path, name, place) for path, name in zip(paths, shown, strict=True))


def _seeker(path: Path, shown: str, place: str) -> Seeker:
    suffix, version = path.suffix.lower(), Version.of(path)
    if suffix == ".json" and starts_with(path, b"["):
        raise DtlError.of(
            f"{place}.streaming",
            f"{shown} is one JSON list, of which no single row can be read",
            "write it as JSON lines, an object a line",
        )
    if suffix in (".csv", ".tsv"):
        return Separated(version, shown, "," if suffix == ".csv" else "\t")
    if suffix == ".arrow":
        return Table(version, shown, _arrow_batch)
    if suffix == ".parquet":
        _refuse_large_groups(version, shown, place)
        return Table(version, shown, _parquet_batch)
    return JsonLines(version, shown)


def _refuse_large_groups(version: Version, shown: str, place: str) -> None:
    import pyarrow as pa

    try:
        largest, rows = _groups(version).largest
    except pa.ArrowException:
        return  # the reading tells what is wrong with it
    if largest > LARGEST_GROUP:
        raise DtlError.of(
            f"{place}.streaming",
            f"{shown} has a row group of {format_bytes(largest)} and {rows} rows, which is read "
            "whole for one of them",
            f"write it again in row groups of {max(1, rows * LARGEST_GROUP // largest // 10)} rows",
        )


@dataclass(frozen=True)
class _Groups:
    """Row groups of a Parquet file. `ends`: rows up to the end of each; `largest`: bytes, rows."""

    ends: np.ndarray
    largest: tuple[int, int]


@lru_cache(maxsize=TABLES_KEPT)
def _groups(version: Version) -> _Groups:
    from pyarrow import parquet

    about = parquet.read_metadata(version.path)
    groups = [about.row_group(number) for number in range(about.num_row_groups)]
    sizes = [(group.total_byte_size, group.num_rows) for group in groups]
    return _Groups(np.cumsum([rows for _, rows in sizes]), max(sizes, default=(0, 0)))


@lru_cache(maxsize=GROUPS_KEPT)
def _group(version: Version, number: int) -> Any:
    from pyarrow import parquet

    with parquet.ParquetFile(version.path) as table:
        return table.read_row_group(number)


def _parquet_batch(version: Version, row: int) -> tuple[Any, int]:
    ends = _groups(version).ends
    number = int(np.searchsorted(ends, row, side="right"))
    return _group(version, number), row - int(ends[number - 1] if number else 0)


@lru_cache(maxsize=TABLES_KEPT)
def _arrow(version: Version) -> Any:
    """A table that is mapped, not read."""
    import pyarrow as pa

    mapped = pa.memory_map(str(version.path))
    opened = pa.ipc.open_file if starts_with(version.path, b"ARROW1") else pa.ipc.open_stream
    return opened(mapped).read_all()


def _arrow_batch(version: Version, row: int) -> tuple[Any, int]:
    return _arrow(version), row

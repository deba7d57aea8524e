"""Open tables and decoded row groups, cached for reading single rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dtl.data.sources.results import file_starts_with

CACHED_ROW_GROUPS = 4  # decoded row groups, of all files together
CACHED_TABLES = 64  # open tables


@dataclass(frozen=True)
class FileVersion:
    """A file with the stat values that change if it is modified or replaced."""

    path: Path
    stat_values: tuple[int, ...]

    @classmethod
    def from_path(cls, path: Path) -> FileVersion:
        """Return the current version of a file."""
        stat = path.stat()
        return cls(path, (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns))


@dataclass(frozen=True)
class RowGroups:
    """The row groups of a Parquet file. `ends`: number of rows up to the end of each group;
    `largest`: bytes and rows of the largest group."""

    ends: np.ndarray
    largest: tuple[int, int]


@lru_cache(maxsize=CACHED_TABLES)
def read_row_groups(version: FileVersion) -> RowGroups:
    """Return the row groups of a Parquet file."""
    from pyarrow import parquet

    metadata = parquet.read_metadata(version.path)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    sizes = [(group.total_byte_size, group.num_rows) for group in groups]
    return RowGroups(np.cumsum([rows for _, rows in sizes]), max(sizes, default=(0, 0)))


@lru_cache(maxsize=CACHED_ROW_GROUPS)
def _read_row_group(version: FileVersion, number: int) -> Any:
    from pyarrow import parquet

    with parquet.ParquetFile(version.path) as table:
        return table.read_row_group(number)


def locate_parquet_batch(version: FileVersion, row: int) -> tuple[Any, int]:
    """Return the row group with a row, and the row's index in it."""
    ends = read_row_groups(version).ends
    number = int(np.searchsorted(ends, row, side="right"))
    return _read_row_group(version, number), row - int(ends[number - 1] if number else 0)


@lru_cache(maxsize=CACHED_TABLES)
def _open_arrow_table(version: FileVersion) -> Any:
    """Open a table as a memory map."""
    import pyarrow as pa

    mapped = pa.memory_map(str(version.path))
    return open_arrow_reader(version.path, mapped).read_all()


def open_arrow_reader(path: Path, mapped: Any) -> Any:
    """Return the reader of a memory-mapped Arrow file or stream."""
    import pyarrow as pa

    is_file = file_starts_with(path, b"ARROW1")
    return pa.ipc.open_file(mapped) if is_file else pa.ipc.open_stream(mapped)


def locate_arrow_batch(version: FileVersion, row: int) -> tuple[Any, int]:
    """Return the table with a row, and the row's index in it."""
    return _open_arrow_table(version), row

"""Random access to the rows of one local file, one reader per file format."""

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
from dtl.data.sources.delimited_text import (
    read_delimited_row,
    read_header,
    read_positioned_delimited,
)
from dtl.data.sources.formats import READERS
from dtl.data.sources.json_files import read_json_line, read_positioned_json_lines
from dtl.data.sources.results import (
    FileFault,
    PositionedResults,
    ReadResult,
    RowPosition,
    file_starts_with,
    first_error_line,
    os_error_fault,
)
from dtl.data.sources.tables import read_table_rows

MAX_ROW_GROUP_BYTES = 64 * 2**20  # a row group is read completely for one of its rows
CACHED_ROW_GROUPS = 4  # decoded row groups, of all files together
RESTORE_FIX = "restore the original file, and resume"
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
class RandomAccessReader(ABC):
    """Reads single rows of one version of a file. `display_name`: the start of each location."""

    version: FileVersion
    display_name: str

    @property
    def path(self) -> Path:
        """Return the path of the file."""
        return self.version.path

    @abstractmethod
    def iter_rows(self) -> PositionedResults:
        """Iterate over the rows in order, each with its position."""

    @abstractmethod
    def _read_unchecked(self, position: RowPosition) -> ReadResult:
        """Read the row at a position."""

    def read_row(self, position: RowPosition) -> ReadResult:
        """Return the row at a position, or a fault if the file has changed or cannot be read."""
        try:
            if FileVersion.from_path(self.path) != self.version:
                return FileFault(
                    self.display_name,
                    "the file has changed since the run was started",
                    RESTORE_FIX,
                )
            return self._read_unchecked(position)
        except OSError as error:
            return os_error_fault(self.display_name, error)
        except (ValueError, LookupError) as error:  # of pyarrow
            problem = f"the row cannot be read ({first_error_line(error)})"
            return FileFault(self.display_name, problem, RESTORE_FIX)


@dataclass(frozen=True)
class JsonLinesReader(RandomAccessReader):
    """Reads JSON Lines: one JSON object per line."""

    def iter_rows(self) -> PositionedResults:
        return read_positioned_json_lines(self.path, self.display_name)

    def _read_unchecked(self, position: RowPosition) -> ReadResult:
        return read_json_line(position, self.path, f"{self.display_name}:{position.number}")


@dataclass(frozen=True)
class DelimitedTextReader(RandomAccessReader):
    """Reads delimited text (CSV, TSV) with a header."""

    delimiter: str

    def iter_rows(self) -> PositionedResults:
        return read_positioned_delimited(self.path, self.display_name, delimiter=self.delimiter)

    def _read_unchecked(self, position: RowPosition) -> ReadResult:
        location = f"{self.display_name}:{position.number}"
        return read_delimited_row(
            position, self.path, location, header=self._header, delimiter=self.delimiter
        )

    @cached_property
    def _header(self) -> list[str]:
        return read_header(self.path, delimiter=self.delimiter)


@dataclass(frozen=True)
class TableReader(RandomAccessReader):
    """Reads a Parquet or Arrow file. `locate_batch`: a row number -> the batch with that row, and
    the row's index in it."""

    locate_batch: Callable[[FileVersion, int], tuple[Any, int]]

    def iter_rows(self) -> PositionedResults:
        rows = READERS[self.path.suffix.lower()](self.path, self.display_name)
        return ((RowPosition(number, number + 1), row) for number, row in enumerate(rows))

    def _read_unchecked(self, position: RowPosition) -> ReadResult:
        batch, index = self.locate_batch(self.version, position.offset)
        return next(
            read_table_rows([batch.slice(index, 1)], self.display_name, rows_before=position.offset)
        )


def open_random_access_readers(
    paths: list[Path], display_names: list[str], *, location: str
) -> tuple[RandomAccessReader, ...]:
    """Open a reader for each file. `location`: the config key that names them. Raises DtlError if
    a format has no random access."""
    return tuple(
        _open_reader(path, name, location) for path, name in zip(paths, display_names, strict=True)
    )


def _open_reader(path: Path, display_name: str, location: str) -> RandomAccessReader:
    suffix, version = path.suffix.lower(), FileVersion.from_path(path)
    if suffix == ".json" and file_starts_with(path, b"["):
        raise DtlError.of(
            f"{location}.streaming",
            f"{display_name} is one JSON list, which cannot be streamed",
            "convert it to JSON Lines (one object per line)",
        )
    if suffix in (".csv", ".tsv"):
        return DelimitedTextReader(version, display_name, "," if suffix == ".csv" else "\t")
    if suffix == ".arrow":
        return TableReader(version, display_name, _locate_arrow_batch)
    if suffix == ".parquet":
        _check_row_group_size(version, display_name, location)
        return TableReader(version, display_name, _locate_parquet_batch)
    return JsonLinesReader(version, display_name)


def _check_row_group_size(version: FileVersion, display_name: str, location: str) -> None:
    import pyarrow as pa

    try:
        largest, rows = _read_row_groups(version).largest
    except pa.ArrowException:
        return  # the scan of the rows reports the fault
    if largest > MAX_ROW_GROUP_BYTES:
        recommended = max(1, rows * MAX_ROW_GROUP_BYTES // largest // 10)
        raise DtlError.of(
            f"{location}.streaming",
            f"{display_name} has a row group of {format_bytes(largest)} and {rows} rows, which is "
            f"read completely for each row (limit {format_bytes(MAX_ROW_GROUP_BYTES)})",
            f"rewrite it with row groups of {recommended} rows",
        )


@dataclass(frozen=True)
class _RowGroups:
    """The row groups of a Parquet file. `ends`: number of rows up to the end of each group;
    `largest`: bytes and rows of the largest group."""

    ends: np.ndarray
    largest: tuple[int, int]


@lru_cache(maxsize=CACHED_TABLES)
def _read_row_groups(version: FileVersion) -> _RowGroups:
    from pyarrow import parquet

    metadata = parquet.read_metadata(version.path)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    sizes = [(group.total_byte_size, group.num_rows) for group in groups]
    return _RowGroups(np.cumsum([rows for _, rows in sizes]), max(sizes, default=(0, 0)))


@lru_cache(maxsize=CACHED_ROW_GROUPS)
def _read_row_group(version: FileVersion, number: int) -> Any:
    from pyarrow import parquet

    with parquet.ParquetFile(version.path) as table:
        return table.read_row_group(number)


def _locate_parquet_batch(version: FileVersion, row: int) -> tuple[Any, int]:
    ends = _read_row_groups(version).ends
    number = int(np.searchsorted(ends, row, side="right"))
    return _read_row_group(version, number), row - int(ends[number - 1] if number else 0)


@lru_cache(maxsize=CACHED_TABLES)
def _open_arrow_table(version: FileVersion) -> Any:
    """Open a table as a memory map."""
    import pyarrow as pa

    mapped = pa.memory_map(str(version.path))
    open_reader = (
        pa.ipc.open_file if file_starts_with(version.path, b"ARROW1") else pa.ipc.open_stream
    )
    return open_reader(mapped).read_all()


def _locate_arrow_batch(version: FileVersion, row: int) -> tuple[Any, int]:
    return _open_arrow_table(version), row

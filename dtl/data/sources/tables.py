"""Reads Parquet and Arrow tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from dtl.core.errors import Fault
from dtl.core.units import format_bytes
from dtl.data.sources.class_names import convert_fields, converters_of_schema
from dtl.data.sources.file_reader import FileReader
from dtl.data.sources.naming import format_names
from dtl.data.sources.results import (
    Fields,
    FileFault,
    PositionedResults,
    ReadResult,
    RowPosition,
    describe_decode_error,
    file_starts_with,
    first_error_line,
)
from dtl.data.sources.table_cache import (
    FileVersion,
    locate_arrow_batch,
    locate_parquet_batch,
    open_arrow_reader,
    read_row_groups,
)

ROWS_PER_BATCH = 1024
MAX_ROW_GROUP_BYTES = 64 * 2**20  # a row group is read completely for one of its rows


class ParquetReader(FileReader):
    """Reads a Parquet file in batches."""

    label = "Parquet"

    def read_positioned(self) -> PositionedResults:
        import pyarrow as pa
        from pyarrow import parquet

        if self.file.compression is not None:
            yield RowPosition(0, 0), _compressed_table_fault(self)
            return
        try:
            with parquet.ParquetFile(self.file.path) as table:
                batches = table.iter_batches(batch_size=ROWS_PER_BATCH)
                yield from _number(read_table_rows(batches, self.file.display_name))
        except pa.ArrowException as error:
            yield RowPosition(0, 0), _unreadable_file_fault(self, error)

    def read_at(self, position: RowPosition) -> ReadResult:
        batch, index = locate_parquet_batch(FileVersion.from_path(self.file.path), position.offset)
        return _read_row(batch, index, self, position)

    def describe(self) -> Iterator[str]:
        import pyarrow as pa
        from pyarrow import parquet

        try:
            yield from _describe_schema(parquet.read_schema(self.file.path))
        except (pa.ArrowException, OSError):
            return  # the reading reports it

    def find_streaming_fault(self, location: str) -> Fault | None:
        """Return the fault of a row group that is too large."""
        import pyarrow as pa

        if (fault := super().find_streaming_fault(location)) is not None:
            return fault
        try:
            largest, rows = read_row_groups(FileVersion.from_path(self.file.path)).largest
        except pa.ArrowException:
            return None  # the scan of the rows reports the fault
        if largest <= MAX_ROW_GROUP_BYTES:
            return None
        recommended = max(1, rows * MAX_ROW_GROUP_BYTES // largest // 10)
        return Fault(
            f"{location}.streaming",
            f"{self.file.display_name} has a row group of {format_bytes(largest)} and {rows} rows, "
            f"which is read completely for each row (limit {format_bytes(MAX_ROW_GROUP_BYTES)})",
            f"rewrite it with row groups of {recommended} rows",
        )


class ArrowReader(FileReader):
    """Reads a memory-mapped Arrow file or stream, one record batch at a time."""

    label = "Arrow"

    def read_positioned(self) -> PositionedResults:
        import pyarrow as pa

        if self.file.compression is not None:
            yield RowPosition(0, 0), _compressed_table_fault(self)
            return
        try:
            with pa.memory_map(str(self.file.path)) as mapped:
                table = open_arrow_reader(self.file.path, mapped)
                if file_starts_with(self.file.path, b"ARROW1"):
                    batches = (table.get_batch(i) for i in range(table.num_record_batches))
                else:
                    batches = iter(table)
                yield from _number(read_table_rows(batches, self.file.display_name))
        except pa.ArrowException as error:
            yield RowPosition(0, 0), _unreadable_file_fault(self, error)

    def read_at(self, position: RowPosition) -> ReadResult:
        batch, index = locate_arrow_batch(FileVersion.from_path(self.file.path), position.offset)
        return _read_row(batch, index, self, position)

    def describe(self) -> Iterator[str]:
        import pyarrow as pa

        try:
            with pa.memory_map(str(self.file.path)) as mapped:
                yield from _describe_schema(open_arrow_reader(self.file.path, mapped).schema)
        except (pa.ArrowException, OSError):
            return  # the reading reports it


def _describe_schema(schema: Any) -> Iterator[str]:
    columns = converters_of_schema(schema.metadata)
    if columns:
        yield f"class names of {format_names(columns)}"


def _number(results: Iterable[ReadResult]) -> PositionedResults:
    return ((RowPosition(index, index + 1), result) for index, result in enumerate(results))


def _read_row(batch: Any, index: int, reader: FileReader, position: RowPosition) -> ReadResult:
    rows = read_table_rows(
        [batch.slice(index, 1)], reader.file.display_name, rows_before=position.offset
    )
    return next(rows)


def read_table_rows(
    batches: Iterable[Any], display_name: str, *, rows_before: int = 0
) -> Iterator[ReadResult]:
    """Read the rows of record batches. `rows_before`: rows of the file before the first batch."""
    number = rows_before
    for batch in batches:
        converters = converters_of_schema(batch.schema.metadata)
        for row in _convert_batch(batch):
            number += 1
            location = f"{display_name}: row {number}"
            if isinstance(row, Exception):
                yield Fault(location, _describe_value_error(row), "rewrite the row")
            else:
                yield location, convert_fields(converters, row)


def _convert_batch(batch: Any) -> Iterator[Fields | Exception]:
    """Convert the rows of a record batch, one by one if a value cannot be decoded."""
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError):
        for index in range(batch.num_rows):
            try:
                yield batch.slice(index, 1).to_pylist()[0]
            except (ValueError, OverflowError) as error:
                yield error


def _describe_value_error(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return describe_decode_error(error)
    return f"a value cannot be read ({first_error_line(error)})"


def _unreadable_file_fault(reader: FileReader, error: Exception) -> FileFault:
    return FileFault(
        reader.file.display_name,
        f"not a readable {reader.label} file ({first_error_line(error)})",
        "write the file again, or remove it",
    )


def _compressed_table_fault(reader: FileReader) -> FileFault:
    return FileFault(
        reader.file.display_name,
        f"a {reader.label} file is not read from a compressed one",
        "unpack it: its columns are compressed already",
    )

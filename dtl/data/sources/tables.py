"""Readers of Parquet and Arrow tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dtl.core.errors import Fault
from dtl.data.sources.results import (
    Fields,
    FileFault,
    ReadResult,
    describe_decode_error,
    file_starts_with,
    first_error_line,
)

ROWS_PER_BATCH = 1024


def read_parquet(path: Path, display_name: str) -> Iterator[ReadResult]:
    """Read a Parquet file in batches."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as table:
            yield from read_table_rows(table.iter_batches(batch_size=ROWS_PER_BATCH), display_name)
    except pa.ArrowException as error:
        yield _unreadable_file_fault(display_name, "Parquet", error)


def read_arrow(path: Path, display_name: str) -> Iterator[ReadResult]:
    """Read a memory-mapped Arrow file or stream, one record batch at a time."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as mapped:
            if file_starts_with(path, b"ARROW1"):
                table = pa.ipc.open_file(mapped)
                batches = (table.get_batch(i) for i in range(table.num_record_batches))
            else:
                batches = iter(pa.ipc.open_stream(mapped))
            yield from read_table_rows(batches, display_name)
    except pa.ArrowException as error:
        yield _unreadable_file_fault(display_name, "Arrow", error)


def read_table_rows(
    batches: Iterable[Any], display_name: str, *, rows_before: int = 0
) -> Iterator[ReadResult]:
    """Read the rows of record batches. `rows_before`: rows of the file before the first batch."""
    number = rows_before
    for batch in batches:
        for row in _convert_batch(batch):
            number += 1
            location = f"{display_name}: row {number}"
            if isinstance(row, Exception):
                yield Fault(location, _describe_value_error(row), "rewrite the row")
            else:
                yield location, row


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


def _unreadable_file_fault(display_name: str, format_name: str, error: Exception) -> FileFault:
    return FileFault(
        display_name,
        f"not a readable {format_name} file ({first_error_line(error)})",
        "write the file again, or remove it",
    )

"""The supported data file formats, by suffix.

A reader yields each row with its location ("data/x.jsonl:57", counted from 1), a Fault for a row
that cannot be read, or, as the last result, a FileFault if the rest of the file cannot be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from dtl.core.errors import DtlError
from dtl.data.sources.delimited_text import read_csv, read_tsv
from dtl.data.sources.json_files import read_json, read_json_lines
from dtl.data.sources.results import ReadResult
from dtl.data.sources.tables import read_arrow, read_parquet

Reader = Callable[[Path, str], Iterator[ReadResult]]


READERS: dict[str, Reader] = {
    ".jsonl": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}


def find_reader(path: Path, display_name: str) -> Reader:
    """Return the reader for a file's suffix. Raises DtlError for an unsupported suffix."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DtlError.of(
            display_name,
            f"'{path.suffix}' files are not supported" if path.suffix else "the file has no suffix",
            f"convert the file to one of {', '.join(READERS)}",
        )
    return reader

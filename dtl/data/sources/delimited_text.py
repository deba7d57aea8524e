"""Readers of delimited text files: CSV and TSV."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from dtl.core.errors import Fault
from dtl.data.sources.results import (
    BYTE_ORDER_MARK,
    UTF8_FIX,
    FileFault,
    PositionedResults,
    ReadResult,
    RowPosition,
    is_encodable,
)

MAX_FIELD_CHARACTERS = 2**31 - 1  # the csv module's default is 131,072
QUOTES_FIX = "check the quotes of this row"


def read_csv(path: Path, display_name: str) -> Iterator[ReadResult]:
    """Read comma-separated text with a header; all values are strings."""
    return (result for _, result in read_positioned_delimited(path, display_name, delimiter=","))


def read_tsv(path: Path, display_name: str) -> Iterator[ReadResult]:
    """Read tab-separated text with a header; all values are strings."""
    return (result for _, result in read_positioned_delimited(path, display_name, delimiter="\t"))


def read_positioned_delimited(
    path: Path, display_name: str, *, delimiter: str
) -> PositionedResults:
    """Read rows of delimited text, each with its position. A quoted value may have line breaks."""
    with _open_text(path) as file:
        lines = _OffsetTrackingLines(file, offset=len(BYTE_ORDER_MARK) * _has_byte_order_mark(path))
        rows = _parse_delimited(lines, delimiter)
        header, location, position = list[str](), display_name, RowPosition(0, 1)
        try:
            location = f"{display_name}:1"
            for values in rows:
                result: ReadResult | None = None
                if values and not header:
                    header, result = values, _find_header_fault(values, location)
                elif values:
                    result = _parse_delimited_row(values, header, location)
                if result is not None:
                    yield position, result
                if isinstance(result, FileFault):
                    return
                position = RowPosition(lines.offset, rows.line_num + 1)
                location = f"{display_name}:{position.number}"
        except csv.Error as error:
            yield position, FileFault(location, f"the row cannot be parsed ({error})", QUOTES_FIX)


def read_header(path: Path, *, delimiter: str) -> list[str]:
    """Return the column names, the first values in the file."""
    with _open_text(path) as file:
        return next(filter(None, _parse_delimited(file, delimiter)), [])


def read_delimited_row(
    position: RowPosition, path: Path, location: str, *, header: list[str], delimiter: str
) -> ReadResult:
    """Read the row at a position."""
    with _open_text(path, offset=position.offset) as file:
        try:
            return _parse_delimited_row(
                next(_parse_delimited(file, delimiter), []), header, location
            )
        except csv.Error as error:
            return Fault(location, f"the row cannot be parsed ({error})", QUOTES_FIX)


def _open_text(path: Path, *, offset: int = 0) -> TextIOWrapper:
    file = path.open("rb")
    file.seek(offset)
    encoding = "utf-8" if offset else "utf-8-sig"
    return TextIOWrapper(file, encoding=encoding, newline="", errors="surrogateescape")


def _has_byte_order_mark(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(BYTE_ORDER_MARK)) == BYTE_ORDER_MARK


def _parse_delimited(lines: Iterable[str], delimiter: str) -> Any:
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    return csv.reader(lines, delimiter=delimiter, strict=True)


class _OffsetTrackingLines:
    """Lines of a text file; `offset` is the byte after the last line read."""

    def __init__(self, file: TextIOWrapper, *, offset: int) -> None:
        self.offset = offset
        self._file = file

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            self.offset += len(line.encode("utf-8", "surrogateescape"))
            yield line


def _find_header_fault(header: list[str], location: str) -> FileFault | None:
    if not is_encodable("".join(header)):
        return FileFault(location, "the header is not UTF-8 text", UTF8_FIX)
    duplicates = sorted({name for name in header if header.count(name) > 1})
    if duplicates:
        return FileFault(
            location, f"two columns are named '{duplicates[0]}'", "give each column its own name"
        )
    return None


def _parse_delimited_row(values: list[str], header: list[str], location: str) -> ReadResult:
    if len(values) != len(header):
        return Fault(
            location,
            f"{len(values)} values for {len(header)} columns",
            "give every column a value, and quote values that contain the delimiter",
        )
    try:
        "".join(values).encode()
    except UnicodeEncodeError as error:
        byte = ord(error.object[error.start]) & 0xFF
        return Fault(location, f"not UTF-8 text (byte 0x{byte:02x})", UTF8_FIX)
    return location, dict(zip(header, values, strict=True))

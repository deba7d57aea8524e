"""Reads delimited text files: CSV and TSV."""

from __future__ import annotations

import csv
import io
import re
from collections import deque
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import ClassVar

from dtl.config.schema.data_files import FileOptions
from dtl.core.errors import Fault
from dtl.data.sources.data_file import DataFile, detect_compression
from dtl.data.sources.dialect import (
    DELIMITERS,
    MAX_SAMPLED_ROWS,
    Dialect,
    LabelColumns,
    Record,
    find_dialect,
    looks_like_row,
)
from dtl.data.sources.file_reader import TextFileReader
from dtl.data.sources.results import (
    FileFault,
    PositionedResults,
    ReadResult,
    RowPosition,
    is_encodable,
)
from dtl.data.sources.text_encoding import SAMPLE_BYTES

QUOTES_FIX = 'check the quotes of this row, or set data.quoting=none if " is no quoting here'
CARRIAGE_RETURN = re.compile(r"(?<=\r)(?!\n)")  # where a line of old Mac files ends


class DelimitedTextReader(TextFileReader):
    """Reads rows of values with a delimiter between them; all values are strings."""

    option_names = frozenset({"encoding", "delimiter", "quoting", "column_names"})
    default_delimiter: ClassVar[str]

    @cached_property
    def dialect(self) -> Dialect:
        """The dialect of the file."""
        return find_dialect(self._sample_lines, self.options, default=self.default_delimiter)

    @cached_property
    def _sample_lines(self) -> list[str]:
        lines = list(io.StringIO(self.sample_text, newline=""))
        return lines[:-1] if len(self.sample) == SAMPLE_BYTES else lines

    @cached_property
    def header(self) -> list[str]:
        """The names of the columns."""
        if self.dialect.column_names is not None:
            return list(self.dialect.column_names)
        lines = _OffsetTrackingLines(self, start=None)
        return next((values for values in self.dialect.parse(self._rows(lines)) if values), [])

    def read_positioned(self) -> PositionedResults:
        """Yield rows; a quoted value may have line breaks."""
        lines = _OffsetTrackingLines(self, start=None)
        try:
            yield from self._read(lines)
        except UnicodeDecodeError as error:
            location = f"{self.file.display_name}:{lines.number + 1}"
            problem = self.encoding.describe_error(error)
            yield lines.position, FileFault(location, problem, self.encoding.fix)

    def read_at(self, position: RowPosition) -> ReadResult:
        lines = _OffsetTrackingLines(self, start=position.offset)
        location = f"{self.file.display_name}:{position.number}"
        try:
            values: list[str] = next(self.dialect.parse(lines), [])
            return self._parse_row(values, location)
        except (csv.Error, UnicodeDecodeError) as error:
            return Fault(location, f"the row cannot be parsed ({error})", QUOTES_FIX)

    def describe(self) -> Iterator[str]:
        yield from self.dialect.describe()
        yield from super().describe()

    def find_hint(self) -> str | None:
        """Return the key for a file without a header line, or with another delimiter."""
        dialect = self.dialect
        if dialect.column_names is not None:
            return None
        others = [one for one in DELIMITERS if one in "".join(self.header)]
        if len(self.header) == 1 and others:
            return f"if {others[0]!r} separates the values, set data.delimiter"
        rows = dialect.parse(self._rows(iter(self._sample_lines)))
        try:
            sampled = [values for values in islice(rows, MAX_SAMPLED_ROWS) if values]
        except csv.Error:
            return None
        if looks_like_row(self.header, sampled[1:]):
            return "if the first line is a row and no header, set data.column_names"
        return None

    def _read(self, lines: _OffsetTrackingLines) -> PositionedResults:
        dialect, labels = self.dialect, LabelColumns()
        is_quoting_detected = dialect.is_quoted and self.options.quoting is None
        names = list(dialect.column_names or ())
        start = RowPosition(lines.offset, 1)
        rows = dialect.parse(self._rows(lines))
        try:
            for values in rows:
                record, position = Record(values, lines.take()), start
                start = lines.position
                if not values:
                    continue
                location = f"{self.file.display_name}:{position.number}"
                if not names:
                    names = values
                    if (fault := self._find_header_fault(names, location)) is not None:
                        yield position, fault
                        return
                    continue
                labels.add(record)
                if is_quoting_detected and record.is_melted(dialect, len(names), labels):
                    yield position, _melted_fault(record, position, location)
                else:
                    yield position, self._parse_row(values, location, names)
        except csv.Error as error:
            location = f"{self.file.display_name}:{start.number}"
            problem = f"the row cannot be parsed ({error})"
            yield start, FileFault(location, problem, QUOTES_FIX)

    def _rows(self, lines: Iterable[str]) -> Iterator[str]:
        iterator = iter(lines)
        if self.dialect.has_separator_line:
            next(iterator, None)
        return iterator

    def _find_header_fault(self, header: list[str], location: str) -> FileFault | None:
        if not is_encodable("".join(header)):
            return FileFault(
                location, f"the header is not {self.encoding.name} text", self.encoding.fix
            )
        duplicates = sorted({name for name in header if header.count(name) > 1})
        if duplicates:
            return FileFault(
                location,
                f"two columns are named '{duplicates[0]}'",
                "give each column its own name, or set data.column_names if there is no header "
                "line",
            )
        return None

    def _parse_row(
        self, values: list[str], location: str, names: list[str] | None = None
    ) -> ReadResult:
        names = self.header if names is None else names
        if len(values) != len(names):
            return Fault(
                location,
                f"{len(values)} values for {len(names)} columns",
                "give every column a value, quote values that contain the delimiter, or set "
                f"data.delimiter (it is {self.dialect.delimiter!r})",
            )
        if values == names:
            return Fault(location, "the row repeats the header", "remove the row")
        try:
            "".join(values).encode()
        except UnicodeEncodeError as error:
            byte = ord(error.object[error.start]) & 0xFF
            return Fault(
                location, f"not {self.encoding.name} text (byte 0x{byte:02x})", self.encoding.fix
            )
        return location, dict(zip(names, values, strict=True))


class CsvReader(DelimitedTextReader):
    """Reads CSV files."""

    label = "CSV"
    default_delimiter = ","


class TsvReader(DelimitedTextReader):
    """Reads TSV files."""

    label = "TSV"
    default_delimiter = "\t"


def read_tsv(path: Path, display_name: str) -> Iterator[ReadResult]:
    """Read tab-separated text with a header."""
    file = DataFile(path, display_name, detect_compression(path))
    return TsvReader(file, FileOptions()).iter_rows()


def _melted_fault(record: Record, position: RowPosition, location: str) -> Fault:
    return Fault(
        location,
        f'a lone quote (") joins the rows of {len(record.lines)} lines, up to line '
        f"{position.number + len(record.lines) - 1}",
        'set data.quoting=none if " is no quoting here; data.quoting=double if it is one value; '
        "or double the quote",
    )


class _OffsetTrackingLines:
    """Lines of a text file. `offset`, `number`: the byte after the last line read, and its number
    from the first one."""

    def __init__(self, reader: DelimitedTextReader, *, start: int | None) -> None:
        self.offset = reader.encoding.mark_bytes if start is None else start
        self.number = 0
        self._reader = reader
        self._start = start
        self._taken: deque[str] = deque()

    @property
    def position(self) -> RowPosition:
        """The position of the next line."""
        return RowPosition(self.offset, self.number + 1)

    def take(self) -> tuple[str, ...]:
        """Return the lines read since the last call."""
        lines = tuple(self._taken)
        self._taken.clear()
        return lines

    def __iter__(self) -> Iterator[str]:
        encoding = self._reader.encoding
        errors = "surrogateescape" if encoding.newline == b"\n" else "strict"
        for _, line in self._reader.iter_lines(self._start):
            text = line.decode(encoding.codec, errors)
            pieces = CARRIAGE_RETURN.split(text) if "\r" in text else [text]
            for piece in pieces:
                if not piece:
                    continue
                is_complete = len(pieces) == 1
                self.offset += len(line) if is_complete else len(encoding.encode(piece, errors))
                self.number += 1
                self._taken.append(piece)
                yield piece

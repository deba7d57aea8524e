"""The rows of a data source, in order, each with its location."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

from dtl.config.schema import Source
from dtl.core.errors import DtlError, Fault, near
from dtl.data.modalities.media_files import (
    digest_media_files,
    rename_media_column,
    resolve_media_file,
)
from dtl.data.row_formats.base import NO_INPUT, RowInput
from dtl.data.row_formats.detect import RowConverter, find_converter
from dtl.data.sources.content import SourceContent, open_source
from dtl.data.sources.naming import format_names
from dtl.data.sources.random_access import RandomAccessReader, open_random_access_readers
from dtl.data.sources.results import (
    Fields,
    FileFault,
    FormatDescription,
    ReadResult,
    RowPosition,
)

MAX_FAULTS_DISPLAYED = 5


@dataclass(frozen=True)
class Row:
    """One raw example. `index` counts from 0; `location`: its file and line, for messages."""

    index: int
    location: str
    fields: dict[str, object]
    folder: Path = Path()  # the folder to which file names in it are relative


RowCheck = Callable[[Row], Fault | None]


@dataclass(frozen=True)
class SourceScan:
    """The result of one pass over a source: the number of valid rows, and the skipped faults."""

    valid_rows: int
    faults: tuple[Fault, ...]


class Rows:
    """The valid rows of a source, read from disk at each iteration and never all held in memory.

    Only valid rows are numbered and count toward the limit, so that the order of the data and the
    split are the same as for a source without the invalid rows.
    """

    def __init__(
        self,
        content: SourceContent,
        source: Source,
        columns: Mapping[str, str],
        *,
        check: RowCheck,
        skip_invalid: bool,
        reads: RowInput,
    ) -> None:
        self.name = content.display_name
        self.files = content.files
        self._content = content
        self._source = source
        self._columns = dict(columns)
        self._check = check
        self._skip_invalid = skip_invalid
        self._media = reads.media
        self._converter: RowConverter | None = None
        self._kind = reads.kind

    def __iter__(self) -> Iterator[Row]:
        """Iterate over the valid rows. Raises DtlError at an invalid row that is not skipped; the
        error lists a few more."""
        return self._iter_valid_rows([])

    def scan(self) -> SourceScan:
        """Return the result of one pass. Raises DtlError as iteration does."""
        faults: list[Fault] = []
        valid_rows = sum(1 for _ in self._iter_valid_rows(faults))
        return SourceScan(valid_rows, tuple(faults))

    def iter_positions(
        self, readers: Sequence[RandomAccessReader], faults: list[Fault]
    ) -> Iterator[tuple[int, RowPosition]]:
        """Yield the file number and the position of each valid row; add skipped faults to `faults`.
        Raises DtlError as iteration does."""
        current = (0, RowPosition(0, 0))

        def read_results() -> Iterator[ReadResult]:
            nonlocal current
            for file_number, reader in enumerate(readers):
                for position, result in reader.iter_rows():
                    current = (file_number, position)
                    yield result

        # One result is read at a time, so `current` is the position of the row just validated.
        for _ in self._iter_valid_rows(faults, read_results()):
            yield current

    def open_readers(self, location: str) -> tuple[RandomAccessReader, ...]:
        """Return a random access reader for each file. Raises DtlError at the config key `location`
        if the rows of the source are not in files."""
        content = self._content
        if not content.readers:
            raise DtlError.of(
                f"{location}.streaming",
                f"{content.display_name} is a media folder, which cannot be streamed",
                "list its files in a JSON Lines file with the task's columns, and use that file",
            )
        return open_random_access_readers(content.readers, location=location)

    def _iter_valid_rows(
        self, faults: list[Fault], results: Iterator[ReadResult] | None = None
    ) -> Iterator[Row]:
        validated = self._validate_rows(self._content.read_rows() if results is None else results)
        for row in validated:
            if isinstance(row, Row):
                yield row
            elif self._skip_invalid and not isinstance(row, FileFault):
                faults.append(row)
            else:
                others = (other for other in validated if isinstance(other, Fault))
                raise DtlError(
                    row, *islice(others, 0 if self._skip_invalid else MAX_FAULTS_DISPLAYED - 1)
                )

    def _validate_rows(self, results: Iterator[ReadResult]) -> Iterator[Row | Fault]:
        valid_rows = 0
        for result in results:
            row = self.validate_row(valid_rows, result)
            yield row
            valid_rows += isinstance(row, Row)
            if valid_rows == self._source.limit:
                return

    @cached_property
    def description(self) -> FormatDescription:
        """The format of the rows, and what was detected in their files, in words."""
        found = self._content.description
        if self._converter is None:
            return found
        rows = f"rows in {self._converter.format.label} format"
        return replace(found, details=(*found.details, rows))

    def find_suspicions(self, location: str) -> list[Fault]:
        """Return what may be wrong about how files are read. `location`: the config key."""
        return [
            fault for reader in self._content.readers for fault in reader.find_suspicions(location)
        ]

    def add_hint(self, fault: Fault) -> Fault:
        """Return a fault of the first row, whose fix also names what the file looks like."""
        hint = self._content.readers[0].find_hint() if self._content.readers else None
        return fault if hint is None else replace(fault, fix=f"{fault.fix}; {hint}")

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The names of the first row's fields."""
        return tuple(next(iter(self)).fields)

    @cached_property
    def fingerprint(self) -> str:
        """Return the SHA-256 over the content and everything that decides which rows it gives."""
        source = self._source
        parts = [
            self._content.compute_digest(),
            source.name,
            source.split,
            source.limit,
            self._columns,
            source.file_options,
            self._kind,
        ]
        if self._media is not None:
            parts.append(digest_media_files(self._iter_media_files(self._media)))
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _iter_media_files(self, media: str) -> Iterator[tuple[str, Path]]:
        """Yield the name and path of each file named in the media column, of invalid rows too."""
        for result in self._content.read_rows():
            if isinstance(result, Fault):
                continue
            column = self._columns.get(media)
            value = (
                result[1].get(column)
                if column
                else rename_media_column(result[1], media).get(media)
            )
            if (file := resolve_media_file(value, self._content.folder)) is not None:
                yield str(value), file

    def validate_row(self, index: int, result: ReadResult) -> Row | Fault:
        """Return the row with dtl's names of its columns, or its fault."""
        fields = self._rename_columns(result)
        if isinstance(fields, Fault):
            return fields
        location = result[0]  # type: ignore[index]
        if self._media is not None:
            fields = rename_media_column(fields, self._media)
        if self._converter is not None:
            converted = self._converter.convert(fields, location)
            if isinstance(converted, Fault):
                return converted
            fields = converted
        row = Row(index, location, fields, self._content.folder)
        return self._check(row) or row

    def _rename_columns(self, result: ReadResult) -> Fields | Fault:
        """Return the fields with dtl's names of the columns, or the fault of the row."""
        if isinstance(result, Fault):
            return result
        location, raw_fields = result
        fields: Fields = {k: v for k, v in raw_fields.items() if k not in self._columns.values()}
        for name, column in self._columns.items():
            if column not in raw_fields:
                return Fault(
                    location,
                    f"the column '{column}' (data.columns.{name}) is missing",
                    near(column, raw_fields)
                    or f"use one of its columns: {format_names(raw_fields)}",
                )
            fields[name] = raw_fields[column]
        return fields

    def detect_row_format(self, location: str) -> None:
        """Choose the format of the rows by the first one that can be read. `location`: the config
        key of the source. Raises DtlError for a named format that the task does not read."""
        renamed = map(self._rename_columns, self._content.read_rows())
        first = next((fields for fields in renamed if not isinstance(fields, Fault)), {})
        named = self._source.row_format
        self._converter = find_converter(first, self._kind, named, f"{location}.format")


def _accept_row(_: Row) -> None:
    return None


def open_rows(
    source: Source,
    columns: Mapping[str, str],
    location: str = "data.train",
    *,
    check: RowCheck = _accept_row,
    skip_invalid: bool = False,
    reads: RowInput = NO_INPUT,
) -> Rows:
    """Open the rows of a local file or folder, of built-in data, or of a hub dataset.

    `columns`: dtl's name of a column -> its name in the data. `location`: the config key that
    messages name. `check`: returns the fault of a row, or None. `reads`: what the task reads.
    Reads the first row only. Raises DtlError if there is none, or if it is invalid and not skipped.
    """
    content = open_source(source, location, reads.media)
    rows = Rows(content, source, columns, check=check, skip_invalid=skip_invalid, reads=reads)
    first = next(content.read_rows(), None)
    if first is None:
        raise DtlError.of(location, f"{content.display_name} has no rows", "use a source with rows")
    if not skip_invalid or isinstance(first, FileFault):
        missing = _find_missing_columns(first, content.display_name, columns)
        _raise_faults([rows.add_hint(fault) for fault in missing])
    rows.detect_row_format(location)
    if not skip_invalid or isinstance(first, FileFault):
        row = rows.validate_row(0, first)
        _raise_faults([rows.add_hint(row)] if isinstance(row, Fault) else [])
    return rows


def _find_missing_columns(
    result: ReadResult, display_name: str, columns: Mapping[str, str]
) -> list[Fault]:
    """Return a fault at the config key of each mapped column that the first row does not have."""
    if isinstance(result, Fault):
        return []
    _, fields = result
    return [
        Fault(
            f"data.columns.{name}",
            f"{display_name} has no column '{column}'",
            near(column, fields) or f"use one of its columns: {format_names(fields)}",
        )
        for name, column in columns.items()
        if column not in fields
    ]


def _raise_faults(faults: list[Fault]) -> None:
    if faults:
        raise DtlError(*faults)

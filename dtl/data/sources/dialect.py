"""The dialect of delimited text: delimiter, quoting and header, set in the config or detected."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from dtl.config.schema.data_files import FileOptions

DELIMITERS = (",", ";", "\t", "|")
MAX_FIELD_CHARACTERS = 2**31 - 1  # the csv module's default is 131,072
MAX_SAMPLED_ROWS = 1000
MIN_REGULAR_FRACTION = 0.9  # of the sampled rows that have a value for each column
MIN_DELIMITERS = 8  # of regular lines in a quoted value that are too many for chance
MAX_LABELS = 100  # different values of a column of labels
SEPARATOR_LINE = "sep="  # Excel writes it before the header


@dataclass(frozen=True)
class Dialect:
    """How delimited text is split into values.

    `is_quoted`: " quotes values. `column_names`: of a file without a header line. `is_detected`:
    the delimiter or the quoting is not what the suffix stands for. `has_separator_line`: the file
    begins with a line such as sep=;
    """

    delimiter: str
    is_quoted: bool = True
    column_names: tuple[str, ...] | None = None
    has_separator_line: bool = False

    def parse(self, lines: Iterable[str]) -> Any:
        """Return a csv reader of the lines."""
        csv.field_size_limit(MAX_FIELD_CHARACTERS)
        return csv.reader(
            lines,
            delimiter=self.delimiter,
            quoting=csv.QUOTE_MINIMAL if self.is_quoted else csv.QUOTE_NONE,
            strict=True,
        )

    def describe(self) -> Iterator[str]:
        """Yield the dialect in words."""
        name = "tab" if self.delimiter == "\t" else repr(self.delimiter)
        yield f"delimiter {name}"
        if not self.is_quoted:
            yield "no quoting"
        if self.column_names is not None:
            yield "no header line"


def find_dialect(lines: Sequence[str], options: FileOptions, *, default: str) -> Dialect:
    """Return the dialect of a file that starts with these lines.

    `default`: the delimiter that the file's suffix stands for.
    """
    named = Dialect(options.delimiter or default, column_names=options.column_names)
    if lines and lines[0].lower().startswith(SEPARATOR_LINE) and len(lines[0].strip()) == 5:
        delimiter = options.delimiter or lines[0].strip()[-1]
        named = replace(named, delimiter=delimiter, has_separator_line=True)
        lines = lines[1:]
    elif options.delimiter is None:
        named = replace(named, delimiter=_find_delimiter(lines, named, options.quoting))
    if options.quoting is not None:
        return replace(named, is_quoted=options.quoting == "double")
    return replace(named, is_quoted=not _is_unquoted(lines, named))


def _find_delimiter(lines: Sequence[str], default: Dialect, quoting: str | None) -> str:
    """Return the default delimiter, or another one that alone gives regular rows."""
    candidates = [default.delimiter, *(one for one in DELIMITERS if one != default.delimiter)]
    scores = {}
    for delimiter in candidates:
        dialect = replace(default, delimiter=delimiter)
        scores[delimiter] = max(
            _score(lines, replace(dialect, is_quoted=is_quoted))
            for is_quoted in (True, False)
            if quoting is None or is_quoted == (quoting == "double")
        )
    if scores[default.delimiter][0] >= MIN_REGULAR_FRACTION:
        return default.delimiter
    best = max(candidates, key=lambda one: scores[one])
    return best if scores[best][0] >= MIN_REGULAR_FRACTION else default.delimiter


def _score(lines: Sequence[str], dialect: Dialect) -> tuple[float, int]:
    """Return the share of regular rows, and the number of columns; (0, 1) for a single column."""
    counts = list(_value_counts(lines, dialect))
    columns = len(dialect.column_names or ()) or (counts[0] if counts else 1)
    if columns < 2:
        return 0.0, 1
    return sum(count == columns for count in counts) / len(counts), columns


def _value_counts(lines: Sequence[str], dialect: Dialect) -> Iterator[int]:
    """Yield the number of values of each sampled row; -1 for the rest that cannot be parsed."""
    try:
        for values in islice(dialect.parse(lines), MAX_SAMPLED_ROWS):
            if values:
                yield len(values)
    except csv.Error:
        yield -1


def _is_unquoted(lines: Sequence[str], dialect: Dialect) -> bool:
    """Return whether quotes are ordinary characters.

    Then each line has all its values, but with quoting some lines are joined or cannot be parsed.
    """
    sampled = [line for line in lines if line.strip("\r\n")][:MAX_SAMPLED_ROWS]
    columns = len(sampled[0].split(dialect.delimiter)) if sampled else 1
    if columns < 2 or not any('"' in line for line in sampled):
        return False
    if any(line.count(dialect.delimiter) + 1 != columns for line in sampled):
        return False
    labels, records = LabelColumns(), list[Record]()
    try:
        for record in iter_records(sampled, dialect):
            labels.add(record)
            records.append(record)
    except csv.Error as error:
        if "end of data" not in str(error):
            return True  # characters after a closing quote
        read = sum(len(record.lines) for record in records)
        records.append(Record([], tuple(sampled[read:])))
    return any(record.is_melted(dialect, columns, labels) for record in records)


def looks_like_row(header: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Return whether a header has values of a row: numbers, sentences, or values of its column."""
    return any(
        value.replace(".", "", 1).isdigit()
        or value.count(" ") > 2
        or any(column < len(row) and row[column] == value for row in rows)
        for column, value in enumerate(header)
        if value
    )


@dataclass(frozen=True)
class Record:
    """A parsed row and the lines of the file that it is made of."""

    values: list[str]
    lines: tuple[str, ...]

    def is_melted(self, dialect: Dialect, columns: int, labels: LabelColumns) -> bool:
        """Return whether several rows were read as one, because of a lone quote.

        Then each of its lines has all delimiters of a row. A quoted text with line breaks can have
        them by chance. Therefore the lines must have values of a label column in its place, or
        many delimiters together.
        """
        if len(self.lines) < 2 or columns < 2:
            return False
        lines = [line for line in self.lines if line.strip("\r\n")]
        if len(lines) < 2 or any(line.count(dialect.delimiter) + 1 != columns for line in lines):
            return False
        if labels.match([line.rstrip("\r\n").split(dialect.delimiter) for line in lines]):
            return True
        threshold = 1 if dialect.delimiter == "\t" else MIN_DELIMITERS
        return (len(lines) - 1) * (columns - 1) >= threshold


class LabelColumns:
    """The values of columns with few different values, by column; from rows of one line."""

    def __init__(self) -> None:
        self._values: dict[int, set[str]] = {}

    def add(self, record: Record) -> None:
        """Add the values of a row."""
        if len(record.lines) > 1:
            return
        for column, value in enumerate(record.values):
            values = self._values.setdefault(column, set())
            if len(values) <= MAX_LABELS:
                values.add(value)

    def match(self, rows: Sequence[Sequence[str]]) -> bool:
        """Return whether all these rows have a known label in the same column."""
        return any(
            len(values) <= MAX_LABELS and all(row[column].strip('"') in values for row in rows)
            for column, values in self._values.items()
        )


def iter_records(lines: Iterable[str], dialect: Dialect) -> Iterator[Record]:
    """Yield the rows with their lines. Raises csv.Error."""
    current: list[str] = []

    def track() -> Iterator[str]:
        for line in lines:
            current.append(line)
            yield line

    for values in dialect.parse(track()):
        if values:
            yield Record(values, tuple(current))
        current.clear()

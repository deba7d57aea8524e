"""Encodes rows into the cache: one process writes, the others wait."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from dtl.core.cache_folder import cache_folder
from dtl.core.checksums import ChecksummedFile, FileChecksums, open_intact, seal_folder
from dtl.core.errors import DtlError
from dtl.core.files import staged_folder, write_text
from dtl.data.example import EncodedExample, Skip

if TYPE_CHECKING:
    from dtl.data.sources.rows import Row

from dtl.data.cache.encoded import (
    GROUPS_FILE,
    INDEX_FILE,
    NOTES_FILE,
    PER_EXAMPLE,
    SKIPPED_ROWS_FILE,
    EncodedData,
    EncodingSummary,
)
from dtl.data.cache.store import wait_for_folder

FIXES = {  # of rows that are all skipped, by the first reason
    reason: "raise task.max_length"
    for reason in ("no target left after truncation", "no response left after truncation")
}
NO_GROUP = "(none)"  # of a row that has no value in the column
NARROW_DTYPES = {np.dtype(np.int16): "<i2", np.dtype(np.uint8): "|u1"}  # samples and pixels


def encode_rows(
    rows: Iterable[Row],
    encoder: Callable[[Row], EncodedExample | Skip],
    *,
    key: str,
    location: str,
    group_by: str | None = None,
    accept: Callable[[EncodedData], None] = lambda data: None,
) -> EncodedData:
    """Return the encoded rows from the cache; encode them if they are not there, or damaged there,
    all or none.

    `group_by`: the column whose value is stored with each example; it is part of the key.
    `location`: the config key that messages name. `accept`: raises DtlError for examples that this
    command does not accept. Raises DtlError if no row gives an example.
    """
    folder = cache_folder() / "encoded" / key
    data = open_intact(folder, EncodedData)
    if data is None:
        with staged_folder(folder) as staged:
            seal_folder(staged, _write_files(rows, encoder, staged, group_by))
        data = EncodedData(folder)
    accept(data)
    if len(data) == 0:
        reasons = "; ".join(f"{count} x {why}" for why, count in data.summary.skipped.items())
        raise DtlError.of(
            location,
            f"none of {data.summary.rows} rows can be trained on ({reasons})",
            FIXES.get(next(iter(data.summary.skipped), ""), "check the rows and data.columns"),
        )
    return data


def wait_for_encoded_data(key: str, *, timeout_seconds: float = 3600.0) -> EncodedData:
    """Wait until another process has encoded the rows, and return them."""
    folder = cache_folder() / "encoded" / key
    return wait_for_folder(folder, EncodedData, timeout_seconds=timeout_seconds)


def format_group(row: Row, column: str) -> str:
    """Return the group of a row: its value in a column, as text."""
    value = row.fields.get(column)
    if value is None:
        return NO_GROUP
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _write_files(
    rows: Iterable[Row],
    encoder: Callable[[Row], EncodedExample | Skip],
    staged: Path,
    group_by: str | None,
) -> dict[str, FileChecksums]:
    """Write the files of a cache; return the checksums of those with the values."""
    skipped_rows: list[tuple[int, str]] = []
    notes: list[tuple[int, str, list[str], list[str]]] = []
    groups: list[str] = []
    examples_of_row: Counter[int] = Counter()
    with ExitStack() as open_files:
        writer = _ExampleWriter(staged, open_files)
        for row in rows:
            example = encoder(row)
            if isinstance(example, Skip):
                skipped_rows.append((row.index, example.reason))
                continue
            if example.dropped or example.notes:
                notes.append((row.index, row.location, [*example.dropped], [*example.notes]))
            if group_by is not None:
                groups.append(format_group(row, group_by))
            examples_of_row[row.index] += 1
            writer.add(row.index, example)
    summary = EncodingSummary(
        rows=len(examples_of_row.keys() | {index for index, _ in skipped_rows}),
        examples=writer.examples,
        skipped=dict(Counter(reason for _, reason in skipped_rows)),
        expanded=sum(count > 1 for count in examples_of_row.values()),
    )
    write_text(staged / SKIPPED_ROWS_FILE, json.dumps(skipped_rows), sync=False)
    write_text(staged / NOTES_FILE, json.dumps(notes), sync=False)
    if group_by is not None:
        write_text(staged / GROUPS_FILE, json.dumps(groups), sync=False)
    index = {
        "summary": asdict(summary),
        "values": [[name, column.kind] for name, column in writer.columns.items()],
    }
    write_text(staged / INDEX_FILE, json.dumps(index), sync=False)
    return writer.checksums


def _storage_dtype(array: np.ndarray) -> str:
    is_integer = array.dtype.kind in "iub" or array.size == 0
    return NARROW_DTYPES.get(array.dtype, "<i4" if is_integer else "<f4")


def _cast(value: Any, dtype: str) -> np.ndarray:
    """Return a value as an array of one axis; an empty list, which NumPy takes for floats, too."""
    array = np.atleast_1d(np.asarray(value))
    return array.astype(dtype, casting="same_kind" if array.size else "unsafe")


def convert_to_stored_dtypes(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with the dtypes that they would have when read from the cache."""
    arrays = {name: np.asarray(value) for name, value in values.items()}
    stored = {name: _cast(array, _storage_dtype(array)) for name, array in arrays.items()}
    return {name: stored[name] if arrays[name].ndim else stored[name][0].item() for name in stored}


class _ExampleWriter:
    """Appends examples to the files of a folder. `examples`: their number."""

    def __init__(self, folder: Path, open_files: ExitStack) -> None:
        self.examples = 0
        self.columns: dict[str, _ColumnWriter] = {}
        self._folder = folder
        self._open_files = open_files
        self._numbers = {
            name: open_files.enter_context(ChecksummedFile(folder / f"{name}.numbers"))
            for name in PER_EXAMPLE
        }

    @property
    def checksums(self) -> dict[str, FileChecksums]:
        """The checksums of the files, by name."""
        files = {f"{name}.numbers": file for name, file in self._numbers.items()}
        for column in self.columns.values():
            files |= column.files
        return {name: file.checksums for name, file in files.items()}

    def add(self, row_index: int, example: EncodedExample) -> None:
        """Append the numbers and the values of one example."""
        self.examples += 1
        numbers = (example.length, example.targets, row_index)
        for name, number in zip(PER_EXAMPLE, numbers, strict=True):
            self._numbers[name].write(np.int64(number).astype("<i8").tobytes())
        for name, value in example.values.items():
            if name not in self.columns:
                column = _ColumnWriter(self._folder, name, value)
                self.columns[name] = self._open_files.enter_context(column)
            self.columns[name].add(value)


class _ColumnWriter:
    """Appends the integers or floats (one or an array) of one example after another to a file."""

    def __init__(self, folder: Path, name: str, first: Any) -> None:
        array = np.asarray(first)
        self._dtype = _storage_dtype(array)
        self.kind = {"dtype": self._dtype, "single": array.ndim == 0}
        self._paths = folder / f"{name}.values", folder / f"{name}.ends"
        self._end = 0

    def __enter__(self) -> Self:
        self._values, self._ends = (ChecksummedFile(path) for path in self._paths)
        return self

    def __exit__(self, *error: object) -> None:
        self._values.__exit__(*error)
        self._ends.__exit__(*error)

    @property
    def files(self) -> dict[str, ChecksummedFile]:
        """The files of this column, by name."""
        return {
            path.name: file
            for path, file in zip(self._paths, (self._values, self._ends), strict=True)
        }

    def add(self, value: Any) -> None:
        """Append the value of one example."""
        array = _cast(value, self._dtype)
        self._end += array.size
        self._values.write(array.tobytes())
        self._ends.write(np.int64(self._end).astype("<i8").tobytes())

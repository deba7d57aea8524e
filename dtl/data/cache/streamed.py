"""Rows that are encoded in the step that learns from them; on disk only where each of them stands.

The index is made once, of the content of the files, and mapped: a row costs 16 bytes of it.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dtl.core.cache_folder import cache_folder
from dtl.core.errors import DtlError, Fault, RankFailed, RunFailed
from dtl.core.files import staged_folder
from dtl.data.cache.encoded import evenly_spaced_indices
from dtl.data.cache.encoder import convert_to_stored_dtypes
from dtl.data.cache.store import memory_map, wait_for_file
from dtl.data.example import EncodedExample, Skip
from dtl.data.sources.random_access import RandomAccessReader
from dtl.data.sources.results import RowPosition
from dtl.data.sources.rows import Row, Rows, SourceScan

INDEX_FILE = "index.json"
COLUMNS = ("offset", "number")  # of a spot
BUFFER_ROWS = 2**16  # numbers that are written at once


@dataclass(frozen=True)
class SkippedRow:
    """A row that is no example, by its number: where it stands, and why."""

    row: int
    location: str
    reason: str


@dataclass(frozen=True)
class RowIndex:
    """Where each good row of a source stands. `ends`: good rows up to the end of each file."""

    offsets: np.ndarray
    line_numbers: np.ndarray
    file_ends: np.ndarray
    scan: SourceScan

    @classmethod
    def open(cls, folder: Path) -> RowIndex:
        index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        offsets, numbers = (memory_map(folder / f"{name}.numbers", "<i8") for name in COLUMNS)
        bad = tuple(Fault(*fault) for fault in index["bad"])
        return cls(offsets, numbers, np.array(index["ends"]), SourceScan(len(offsets), bad))

    def locate(self, row: int) -> tuple[int, RowPosition]:
        """The number of the file that a row stands in, and its spot there."""
        file = int(np.searchsorted(self.file_ends, row, side="right"))
        return file, RowPosition(int(self.offsets[row]), int(self.line_numbers[row]))


def open_row_index(
    rows: Rows, readers: Sequence[RandomAccessReader], *, key: str, writes: bool
) -> RowIndex:
    """The index of a source, made in one pass that also checks the rows, unless it is there.
    `writes`: this process makes it; the others wait. Raises DtlError as a reading does."""
    folder = cache_folder() / "indexed" / key
    if not writes:
        wait_for_file(folder / INDEX_FILE)
    elif not (folder / INDEX_FILE).exists():
        with staged_folder(folder) as staged:
            _write_index(rows, readers, staged)
    return RowIndex.open(folder)


def _write_index(rows: Rows, readers: Sequence[RandomAccessReader], staged: Path) -> None:
    faults: list[Fault] = []
    counts = [0] * len(readers)
    buffers = {name: array("q") for name in COLUMNS}
    files = {name: staged / f"{name}.numbers" for name in COLUMNS}

    def flush() -> None:
        for name, numbers in buffers.items():
            with files[name].open("ab") as file:
                file.write(np.asarray(numbers, dtype="<i8").tobytes())
            del numbers[:]

    for file, spot in rows.iter_positions(readers, faults):
        counts[file] += 1
        buffers["offset"].append(spot.offset)
        buffers["number"].append(spot.number)
        if len(buffers["offset"]) == BUFFER_ROWS:
            flush()
    flush()
    about = {"ends": np.cumsum(counts).tolist(), "bad": [astuple(fault) for fault in faults]}
    (staged / INDEX_FILE).write_text(json.dumps(about), encoding="utf-8")


@dataclass(frozen=True)
class StreamedExamples:
    """What a rank has read of the rows of one step. `ids`: of those that are examples, longest
    first; `examples`: by id, one more where there is none among them."""

    ids: np.ndarray
    examples: dict[int, EncodedExample]
    skipped_rows: tuple[SkippedRow, ...]

    @property
    def shortest_example(self) -> int:
        """An example to stand in where a micro-batch has none."""
        return min(self.examples, key=lambda number: self.examples[number].length)

    @property
    def total_length(self) -> int:
        return sum(self.examples[number].length for number in self.ids.tolist())

    def count_targets(self, ids: np.ndarray) -> int:
        return sum(self.examples[number].targets for number in ids.tolist())

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.examples[number].values


class StreamedData:
    """Examples that are read where they stand and encoded when they are asked for.

    `chosen`: the rows that are learnt from, by number; None: all. `longest`: what the length of an
    example may be at most. Which rows are examples at all is known when they are read.
    """

    def __init__(
        self,
        rows: Rows,
        index: RowIndex,
        readers: Sequence[RandomAccessReader],
        encoder: Callable[[Row], EncodedExample | Skip],
        *,
        key: str,
        max_length: int,
        row_numbers: np.ndarray | None = None,
    ) -> None:
        self.key = key
        self._rows = rows
        self._index = index
        self._readers = readers
        self._encoder = encoder
        self._max_length = max_length
        self._row_numbers = row_numbers

    def __len__(self) -> int:
        return len(self._index.offsets if self._row_numbers is None else self._row_numbers)

    def format_summary(self, name: str) -> str:
        """What becomes of the rows, in words."""
        return f"{name}: {len(self)} rows, each read and encoded in the step that learns from it"

    @property
    def lengths(self) -> np.ndarray:
        """What each may have at most; it takes no memory."""
        return np.broadcast_to(np.int64(self._max_length), len(self))

    def read_examples(self, ids: np.ndarray) -> StreamedExamples:
        """Read and encode these. Raises RankFailed for a row that can no longer be read, or not be
        encoded."""
        examples: dict[int, EncodedExample] = {}
        skipped_rows = []
        for number in np.sort(ids).tolist():  # neighbours may stand in one group of a table
            row, found = self._read_example(number)
            if isinstance(found, Skip):
                skipped_rows.append(SkippedRow(row.index, row.location, found.reason))
            else:
                examples[number] = found
        example_ids = np.array(
            [number for number in ids.tolist() if number in examples], dtype=np.int64
        )
        lengths = np.array(
            [examples[number].length for number in example_ids.tolist()], dtype=np.int64
        )
        longest_first = example_ids[np.argsort(-lengths, kind="stable")]
        return StreamedExamples(
            longest_first, examples or dict([self._placeholder_example]), tuple(skipped_rows)
        )

    def sample(self, count: int) -> list[dict[str, Any]]:
        """The values of so many rows, evenly spaced, and of one at least."""
        found = (
            self._read_example(number)[1] for number in evenly_spaced_indices(len(self), count)
        )
        values = [one.values for one in found if isinstance(one, EncodedExample)]
        return values or [self._placeholder_example[1].values]

    def _read_example(self, number: int) -> tuple[Row, EncodedExample | Skip]:
        index = number if self._row_numbers is None else int(self._row_numbers[number])
        file, spot = self._index.locate(index)
        row = self._rows.validate_row(index, self._readers[file].read_row(spot))
        if isinstance(row, Fault):
            raise RankFailed(row)
        try:
            found = self._encoder(row)
        except DtlError as fault:
            raise RankFailed(*fault.faults) from fault
        if isinstance(found, EncodedExample):
            found = EncodedExample(
                convert_to_stored_dtypes(found.values), found.length, found.targets
            )
        return row, found

    @cached_property
    def _placeholder_example(self) -> tuple[int, EncodedExample]:
        """The first example of all."""
        for number in range(len(self)):
            _, found = self._read_example(number)
            if isinstance(found, EncodedExample):
                return number, found
        raise RunFailed.of(
            self._rows.name,
            f"none of {len(self)} rows has anything to learn from",
            "check the columns, or raise task.max_length",
        )

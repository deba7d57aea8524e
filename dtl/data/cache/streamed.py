"""Rows that are read and encoded in the step that trains on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from dtl.core.errors import DtlError, Fault, RankFailed, RunFailed
from dtl.data.cache.encoded import evenly_spaced_indices
from dtl.data.cache.encoder import convert_to_stored_dtypes
from dtl.data.cache.row_index import RowIndex
from dtl.data.example import EncodedExample, Skip
from dtl.data.sources.random_access import RandomAccessReader
from dtl.data.sources.rows import Row, Rows


@dataclass(frozen=True)
class SkippedRow:
    """A row that cannot be trained on: its index, its location, and the reason."""

    row: int
    location: str
    reason: str


@dataclass(frozen=True)
class IndexedRows:
    """The valid rows of a source, read singly by index. `readers`: one for each file."""

    rows: Rows
    index: RowIndex
    readers: Sequence[RandomAccessReader]

    def __len__(self) -> int:
        return len(self.index.offsets)

    def read_row(self, index: int) -> Row | Fault:
        """Return a row, or its fault if it can no longer be read."""
        file, position = self.index.locate(index)
        return self.rows.validate_row(index, self.readers[file].read_row(position))


@dataclass(frozen=True)
class StreamedExamples:
    """The examples of one rank and step. `ids`: longest first, shape (N,); `examples`: by id; if
    there are none, only a placeholder example that is not in `ids`."""

    ids: np.ndarray
    examples: dict[int, EncodedExample]
    skipped_rows: tuple[SkippedRow, ...]

    @property
    def shortest_example(self) -> int:
        """Return the id of the shortest example, the placeholder of an empty micro-batch."""
        return min(self.examples, key=lambda number: self.examples[number].length)

    @property
    def total_length(self) -> int:
        """Return the sum of the lengths."""
        return sum(self.examples[number].length for number in self.ids.tolist())

    def count_targets(self, ids: np.ndarray) -> int:
        """Return the number of targets of these examples."""
        return sum(self.examples[number].targets for number in ids.tolist())

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.examples[number].values


class StreamedData:
    """Examples that are read and encoded when they are requested.

    `max_length`: the largest possible length of an example. `row_numbers`: the rows to train on;
    None: all. Which rows have to be skipped is known only when they are read.
    """

    def __init__(
        self,
        source: IndexedRows,
        encoder: Callable[[Row], EncodedExample | Skip],
        *,
        key: str,
        max_length: int,
        row_numbers: np.ndarray | None = None,
    ) -> None:
        self.key = key
        self._source = source
        self._encoder = encoder
        self._max_length = max_length
        self._row_numbers = row_numbers

    def __len__(self) -> int:
        return len(self._source if self._row_numbers is None else self._row_numbers)

    def format_summary(self, name: str) -> str:
        """Return the number of rows as a line of text."""
        return f"{name}: {len(self)} rows, each read and encoded in the step that trains on it"

    @property
    def lengths(self) -> np.ndarray:
        """Return the largest possible length of each example, shape (N,); it takes no memory."""
        return np.broadcast_to(np.int64(self._max_length), len(self))

    def read_examples(self, ids: np.ndarray) -> StreamedExamples:
        """Read and encode the rows of these ids, shape (N,). Raises RankFailed for a row that can
        no longer be read or cannot be encoded."""
        examples: dict[int, EncodedExample] = {}
        skipped_rows = []
        for number in np.sort(ids).tolist():  # neighbors may be in one row group of a table
            row, example = self._read_example(number)
            if isinstance(example, Skip):
                skipped_rows.append(SkippedRow(row.index, row.location, example.reason))
            else:
                examples[number] = example
        example_ids = [number for number in ids.tolist() if number in examples]
        lengths = np.array([examples[number].length for number in example_ids], dtype=np.int64)
        longest_first = np.array(example_ids, dtype=np.int64)[np.argsort(-lengths, kind="stable")]
        return StreamedExamples(
            longest_first, examples or dict([self._placeholder_example]), tuple(skipped_rows)
        )

    def sample(self, count: int) -> list[dict[str, Any]]:
        """Return the values of `count` evenly spaced rows without skipped ones; at least one."""
        examples = (
            self._read_example(number)[1] for number in evenly_spaced_indices(len(self), count)
        )
        values = [each.values for each in examples if isinstance(each, EncodedExample)]
        return values or [self._placeholder_example[1].values]

    def _read_example(self, number: int) -> tuple[Row, EncodedExample | Skip]:
        index = number if self._row_numbers is None else int(self._row_numbers[number])
        row = self._source.read_row(index)
        if isinstance(row, Fault):
            raise RankFailed(row)
        try:
            example = self._encoder(row)
        except DtlError as error:
            raise RankFailed(*error.faults) from error
        if isinstance(example, EncodedExample):
            example = replace(example, values=convert_to_stored_dtypes(example.values))
        return row, example

    @cached_property
    def _placeholder_example(self) -> tuple[int, EncodedExample]:
        """Return the id and values of the first example of the source."""
        for number in range(len(self)):
            _, example = self._read_example(number)
            if isinstance(example, EncodedExample):
                return number, example
        raise RunFailed.of(
            self._source.rows.name,
            f"none of {len(self)} rows can be trained on",
            "check data.columns, or raise task.max_length",
        )

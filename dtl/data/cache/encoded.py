"""Encoded examples on disk, read through memory maps."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dtl.core.checksums import CheckedFolder, open_cache_folder
from dtl.data.cache.store import CheckedArray, map_verified, read_json_verified

INDEX_FILE = "index.json"
SKIPPED_ROWS_FILE = "skipped_rows.json"
NOTES_FILE = "notes.json"
GROUPS_FILE = "groups.json"
DTYPES = ("<i4", "<f4", "<i2", "|u1")
PER_EXAMPLE = ("length", "targets", "row")


@dataclass(frozen=True)
class EncodingSummary:
    """The counts of one source: its rows, the examples, the skipped rows by reason, and the rows
    that are several examples each."""

    rows: int
    examples: int
    skipped: dict[str, int] = field(default_factory=dict)
    expanded: int = 0

    def format_line(self, name: str) -> str:
        """Return the counts as a line of text."""
        skipped = "".join(f", {count} skipped ({reason})" for reason, count in self.skipped.items())
        if not self.expanded:
            return f"{name}: {self.examples} of {self.rows} examples{skipped}"
        return (
            f"{name}: {self.examples} examples from {self.rows} rows{skipped}; {self.expanded} "
            "chats are several examples each, so that each answer is learned as it is used: after "
            "the chat template's own text for the messages before it"
        )


@dataclass(frozen=True)
class RowNotes:
    """What is unusual about the examples of a row: features that its template drops, and notes."""

    row: int
    location: str
    dropped: tuple[str, ...]
    notes: tuple[str, ...]


def evenly_spaced_indices(total: int, count: int) -> list[int]:
    """Return `count` evenly spaced indices below `total`, or all of them if there are fewer."""
    spaced = np.linspace(0, total - 1, min(count, total))
    return [int(number) for number in np.unique(spaced.astype(int))]


class ExtraValues(Protocol):
    """Additional values of each example, by index."""

    def __getitem__(self, index: int) -> Any: ...


class EncodedData:
    """Memory-mapped encoded examples; `data[i]` are the values of example `i`. `extras`: additional
    values of each example, by name.

    The numbers of all examples are verified here, their values when they are first read. Raises
    DamagedFolder.
    """

    def __init__(self, folder: Path, **extras: ExtraValues) -> None:
        self.folder = folder
        self._extras = extras
        self._checked = open_cache_folder(folder)
        index = read_json_verified(self._checked, INDEX_FILE)
        self.summary = EncodingSummary(**index["summary"])
        self.lengths, self.targets, self.rows = (
            map_verified(self._checked, f"{name}.numbers", "<i8") for name in PER_EXAMPLE
        )
        self._columns = {
            name: _RaggedColumn.open(self._checked, name, **kind) for name, kind in index["values"]
        }

    @property
    def skipped_rows(self) -> dict[int, str]:
        """Return the index of each skipped row -> the reason."""
        pairs = read_json_verified(self._checked, SKIPPED_ROWS_FILE)
        return {int(row): str(reason) for row, reason in pairs}

    @cached_property
    def row_notes(self) -> list[RowNotes]:
        """Return the notes on rows, of those that have some."""
        entries = read_json_verified(self._checked, NOTES_FILE)
        return [RowNotes(row, at, tuple(gone), tuple(notes)) for row, at, gone, notes in entries]

    @cached_property
    def groups(self) -> list[str] | None:
        """Return the group of each example; None if scores are not reported by group."""
        if not self._checked.has_file(GROUPS_FILE):
            return None
        groups: list[str] = read_json_verified(self._checked, GROUPS_FILE)
        return groups

    @property
    def key(self) -> str:
        """Return the cache key: it identifies the data, the tokenizer and the task's options."""
        return self.folder.name

    @property
    def shortest_example(self) -> int:
        """Return the index of the shortest example, the placeholder of an empty micro-batch."""
        return int(np.argmin(self.lengths))

    def count_targets(self, ids: np.ndarray) -> int:
        """Return the number of targets of these examples."""
        return int(self.targets[ids].sum())

    def format_summary(self, name: str) -> str:
        """Return the counts of rows and examples as a line of text."""
        return self.summary.format_line(name)

    def sample(self, count: int) -> list[dict[str, Any]]:
        """Return the values of `count` evenly spaced examples."""
        return [self[number] for number in evenly_spaced_indices(len(self), count)]

    def count_values(self, name: str) -> np.ndarray:
        """Return how many values each example has under this name, shape (N,)."""
        return np.diff(self._columns[name].ends, prepend=0)

    def __len__(self) -> int:
        return self.summary.examples

    def __getitem__(self, index: int) -> dict[str, Any]:
        values = {name: column[int(index)] for name, column in self._columns.items()}
        return values | {name: extra[int(index)] for name, extra in self._extras.items()}


@dataclass(frozen=True)
class _RaggedColumn:
    """The concatenated values of all examples, and the end of each example's values."""

    numbers: CheckedArray
    ends: np.ndarray
    single: bool

    @classmethod
    def open(cls, folder: CheckedFolder, name: str, *, dtype: str, single: bool) -> _RaggedColumn:
        if dtype not in DTYPES or Path(name).name != name:
            raise folder.damage(f"the values {name} have dtype {dtype}")
        numbers = CheckedArray(folder, f"{name}.values", dtype)
        return cls(numbers, map_verified(folder, f"{name}.ends", "<i8"), single)

    def __getitem__(self, index: int) -> Any:
        start = self.ends[index - 1] if index else 0
        part = self.numbers.read(int(start), int(self.ends[index]))
        return part[0].item() if self.single else np.asarray(part)

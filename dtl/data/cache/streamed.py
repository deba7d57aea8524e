"""Rows that are encoded in the step that learns from them; on disk only where each of them stands.

The index is made once, of the content of the files, and mapped: a row costs 16 bytes of it.
"""

from __future__ import annotations

import json
import shutil
import uuid
from array import array
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dtl.core.cache_folder import folder as cache_folder
from dtl.core.errors import DtlError, Fault, RankFailed, RunFailed
from dtl.data.cache.encoded import await_file, evenly, mapped, publish, unwritten
from dtl.data.example import Encoded, Skip
from dtl.data.sources.results import RowPosition
from dtl.data.sources.random_access import RandomAccessReader
from dtl.data.sources.rows import Row, Rows, SourceScan

ABOUT = "index.json"
COLUMNS = ("offset", "number")  # of a spot
BUFFERED = 2**16  # numbers that are written at once


@dataclass(frozen=True)
class LeftOut:
    """A row that is no example, by its number: where it stands, and why."""

    row: int
    place: str
    reason: str


@dataclass(frozen=True)
class Index:
    """Where each good row of a source stands. `ends`: good rows up to the end of each file."""

    offsets: np.ndarray
    numbers: np.ndarray
    ends: np.ndarray
    reading: SourceScan

    @classmethod
    def open(cls, folder: Path) -> Index:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        offsets, numbers = (mapped(folder / f"{name}.numbers", "<i8") for name in COLUMNS)
        bad = tuple(Fault(*fault) for fault in about["bad"])
        return cls(offsets, numbers, np.array(about["ends"]), SourceScan(len(offsets), bad))

    def spot(self, row: int) -> tuple[int, RowPosition]:
        """The number of the file that a row stands in, and its spot there."""
        file = int(np.searchsorted(self.ends, row, side="right"))
        return file, RowPosition(int(self.offsets[row]), int(self.numbers[row]))


def index_of(rows: Rows, seekers: Sequence[RandomAccessReader], *, key: str, writes: bool) -> Index:
    """The index of a source, made in one pass that also checks the rows, unless it is there.
    `writes`: this process makes it; the others wait. Raises DtlError as a reading does."""
    folder = cache_folder() / "indexed" / key
    if not writes:
        await_file(folder / ABOUT)
    elif not (folder / ABOUT).exists():
        staged = folder.with_name(f"{key}.{uuid.uuid4().hex}.staged")
        staged.mkdir(parents=True)
        try:
            _write(rows, seekers, staged)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        publish(staged, folder)
    return Index.open(folder)


def _write(rows: Rows, seekers: Sequence[RandomAccessReader], staged: Path) -> None:
    bad: list[Fault] = []
    counts = [0] * len(seekers)
    held = {name: array("q") for name in COLUMNS}
    files = {name: staged / f"{name}.numbers" for name in COLUMNS}

    def flush() -> None:
        for name, numbers in held.items():
            with files[name].open("ab") as file:
                file.write(np.asarray(numbers, dtype="<i8").tobytes())
            del numbers[:]

    for file, spot in rows.iter_positions(seekers, bad):
        counts[file] += 1
        held["offset"].append(spot.offset)
        held["number"].append(spot.number)
        if len(held["offset"]) == BUFFERED:
            flush()
    flush()
    about = {"ends": np.cumsum(counts).tolist(), "bad": [astuple(fault) for fault in bad]}
    (staged / ABOUT).write_text(json.dumps(about), encoding="utf-8")


@dataclass(frozen=True)
class Share:
    """What a rank has read of the rows of one step. `ids`: of those that are examples, longest
    first; `examples`: by id, one more where there is none among them."""

    ids: np.ndarray
    examples: dict[int, Encoded]
    left_out: tuple[LeftOut, ...]

    @property
    def shortest(self) -> int:
        """An example to stand in where a micro-batch has none."""
        return min(self.examples, key=lambda number: self.examples[number].length)

    @property
    def length(self) -> int:
        return sum(self.examples[number].length for number in self.ids.tolist())

    def targets_of(self, ids: np.ndarray) -> int:
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
        index: Index,
        seekers: Sequence[RandomAccessReader],
        encoder: Callable[[Row], Encoded | Skip],
        *,
        key: str,
        longest: int,
        chosen: np.ndarray | None = None,
    ) -> None:
        self.key = key
        self._rows = rows
        self._index = index
        self._seekers = seekers
        self._encoder = encoder
        self._longest = longest
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._index.offsets if self._chosen is None else self._chosen)

    def line(self, name: str) -> str:
        """What becomes of the rows, in words."""
        return f"{name}: {len(self)} rows, each read and encoded in the step that learns from it"

    @property
    def lengths(self) -> np.ndarray:
        """What each may have at most; it takes no memory."""
        return np.broadcast_to(np.int64(self._longest), len(self))

    def take(self, ids: np.ndarray) -> Share:
        """Read and encode these. Raises RankFailed for a row that can no longer be read, or not be
        encoded."""
        examples: dict[int, Encoded] = {}
        left_out = []
        for number in np.sort(ids).tolist():  # neighbours may stand in one group of a table
            row, found = self._read(number)
            if isinstance(found, Skip):
                left_out.append(LeftOut(row.index, row.location, found.reason))
            else:
                examples[number] = found
        kept = np.array([number for number in ids.tolist() if number in examples], dtype=np.int64)
        lengths = np.array([examples[number].length for number in kept.tolist()], dtype=np.int64)
        longest_first = kept[np.argsort(-lengths, kind="stable")]
        return Share(longest_first, examples or dict([self._stand_in]), tuple(left_out))

    def some(self, count: int) -> list[dict[str, Any]]:
        """The values of so many rows, evenly spaced, and of one at least."""
        found = (self._read(number)[1] for number in evenly(len(self), count))
        values = [one.values for one in found if isinstance(one, Encoded)]
        return values or [self._stand_in[1].values]

    def _read(self, number: int) -> tuple[Row, Encoded | Skip]:
        index = number if self._chosen is None else int(self._chosen[number])
        file, spot = self._index.spot(index)
        row = self._rows.validate_row(index, self._seekers[file].read_row(spot))
        if isinstance(row, Fault):
            raise RankFailed(row)
        try:
            found = self._encoder(row)
        except DtlError as fault:
            raise RankFailed(*fault.faults) from fault
        if isinstance(found, Encoded):
            found = Encoded(unwritten(found.values), found.length, found.targets)
        return row, found

    @cached_property
    def _stand_in(self) -> tuple[int, Encoded]:
        """The first example of all."""
        for number in range(len(self)):
            _, found = self._read(number)
            if isinstance(found, Encoded):
                return number, found
        raise RunFailed.of(
            self._rows.name,
            f"none of {len(self)} rows has anything to learn from",
            "check the columns, or raise task.max_length",
        )

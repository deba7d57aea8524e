"""Index of a source: the position of each valid row, so that single rows can be read.

It is made once for the content of the files and memory-mapped; a row takes 16 bytes.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

from dtl.core.cache_folder import cache_folder
from dtl.core.checksums import (
    ChecksummedFile,
    FileChecksums,
    open_cache_folder,
    open_intact,
    seal_folder,
)
from dtl.core.errors import Fault
from dtl.core.files import staged_folder, write_text
from dtl.data.cache.store import (
    CheckedArray,
    read_json_verified,
    wait_for_folder,
)
from dtl.data.sources.random_access import RandomAccessReader
from dtl.data.sources.results import RowPosition
from dtl.data.sources.rows import Rows, SourceScan

INDEX_FILE = "index.json"
COLUMNS = ("offset", "number")  # the fields of a row position
BUFFER_ROWS = 2**16  # rows whose positions are written at once


@dataclass(frozen=True)
class RowIndex:
    """The positions of the valid rows of a source: offsets and line numbers, shape (rows,), and
    `file_ends`, the number of valid rows up to the end of each file, shape (files,)."""

    offsets: CheckedArray
    line_numbers: CheckedArray
    file_ends: np.ndarray
    scan: SourceScan

    @classmethod
    def open(cls, folder: Path) -> RowIndex:
        """Open the index in a folder as memory maps. Raises DamagedFolder."""
        checked = open_cache_folder(folder)
        index = read_json_verified(checked, INDEX_FILE)
        offsets, numbers = (CheckedArray(checked, f"{name}.numbers", "<i8") for name in COLUMNS)
        faults = tuple(Fault(*fault) for fault in index["faults"])
        return cls(offsets, numbers, np.array(index["file_ends"]), SourceScan(len(offsets), faults))

    def locate(self, row: int) -> tuple[int, RowPosition]:
        """Return the file number of a row, and its position in that file."""
        file = int(np.searchsorted(self.file_ends, row, side="right"))
        offset, number = (
            int(column.read(row, row + 1)[0]) for column in (self.offsets, self.line_numbers)
        )
        return file, RowPosition(offset, number)


def open_row_index(
    rows: Rows, readers: Sequence[RandomAccessReader], *, key: str, writes: bool
) -> RowIndex:
    """Return the index of a source from the cache, or make it in one pass that also validates the
    rows. `writes`: this process makes it, the others wait. Raises DtlError as `Rows.scan` does."""
    folder = cache_folder() / "indexed" / key
    if not writes:
        return wait_for_folder(folder, RowIndex.open)
    index = open_intact(folder, RowIndex.open)
    if index is None:
        with staged_folder(folder) as staged:
            seal_folder(staged, _write_index(rows, readers, staged))
        index = RowIndex.open(folder)
    return index


def _write_index(
    rows: Rows, readers: Sequence[RandomAccessReader], staged: Path
) -> dict[str, FileChecksums]:
    """Write the index; return the checksums of the positions."""
    with ExitStack() as opening:
        files = {
            name: opening.enter_context(ChecksummedFile(staged / f"{name}.numbers"))
            for name in COLUMNS
        }
        _write_positions(rows, readers, files, staged)
    return {f"{name}.numbers": file.checksums for name, file in files.items()}


def _write_positions(
    rows: Rows,
    readers: Sequence[RandomAccessReader],
    files: dict[str, ChecksummedFile],
    staged: Path,
) -> None:
    faults: list[Fault] = []
    counts = [0] * len(readers)
    buffers = {name: array("q") for name in COLUMNS}

    def flush() -> None:
        for name, numbers in buffers.items():
            files[name].write(np.asarray(numbers, dtype="<i8").tobytes())
            del numbers[:]

    for file, position in rows.iter_positions(readers, faults):
        counts[file] += 1
        buffers["offset"].append(position.offset)
        buffers["number"].append(position.number)
        if len(buffers["offset"]) == BUFFER_ROWS:
            flush()
    flush()
    index = {
        "file_ends": np.cumsum(counts).tolist(),
        "faults": [astuple(fault) for fault in faults],
    }
    write_text(staged / INDEX_FILE, json.dumps(index), sync=False)

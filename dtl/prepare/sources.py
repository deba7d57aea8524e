"""Open the sources that a config names, and read each of them through once for invalid rows."""

from __future__ import annotations

import hashlib
import json
from dataclasses import astuple, dataclass, replace

from dtl.config.schema import Data, RunConfig, Source
from dtl.core.cache_folder import cache_folder, read_cache_record, write_cache_record
from dtl.core.errors import DtlError, Fault
from dtl.data.cache.row_index import RowIndex, open_row_index
from dtl.data.sources.rows import MAX_FAULTS_DISPLAYED, RowCheck, Rows, SourceScan, open_rows
from dtl.tasks.base import Task

CACHE_FORMAT = 3  # of the cached results of a scan
MAX_FAULTS_IN_LINE = 3


@dataclass(frozen=True)
class ScannedSource:
    """A source that has been read through.

    `key`: the config key that names it. `faults`: of its invalid rows. `index`: the positions of
    its rows, if they are streamed.
    """

    key: str
    rows: Rows
    valid_rows: int
    faults: tuple[Fault, ...]
    index: RowIndex | None = None

    def format_description(self) -> str:
        """Return the format of the source, and what was detected, as a line of text."""
        return f"{self.key}: {self.rows.description}"

    def format_skipped(self) -> str:
        """Return how many invalid rows are skipped, and the first of them."""
        total = self.valid_rows + len(self.faults)
        return (
            f"{self.key}: {len(self.faults)} of {total} rows are invalid and skipped: "
            f"{_format_first(self.faults)}"
        )


@dataclass(frozen=True)
class SourceReader:
    """How the sources of a config are read.

    `check`: finds the fault of a row instead of the task. `writes`: this process writes the cache;
    the others wait for it.
    """

    config: RunConfig
    task: Task
    check: RowCheck | None = None
    writes: bool = True

    def open(self, key: str, source: Source) -> Rows:
        """Open a source. Raises DtlError if it cannot be read or its first rows are invalid."""
        data = self.config.data
        return open_rows(
            data.with_file_options(source),
            data.columns,
            key,
            check=self.check or self.task.find_row_fault,
            skip_invalid=data.on_bad_row == "skip",
            reads=self.task.row_input,
        )

    def scan(self, key: str, rows: Rows) -> ScannedSource:
        """Read a source through, or take the result from the cache. Raises DtlError for faults."""
        result = rows.scan() if self.check else self._scan_cached(rows)
        return self._accept(key, rows, result)

    def scan_streamed(self, key: str, rows: Rows) -> ScannedSource:
        """Read a streamed source through, and index its rows. Raises DtlError for faults."""
        readers = rows.open_readers(key)
        index = open_row_index(rows, readers, key=self._cache_key(rows), writes=self.writes)
        return replace(self._accept(key, rows, index.scan), index=index)

    def _scan_cached(self, rows: Rows) -> SourceScan:
        path = cache_folder() / "read" / f"{self._cache_key(rows)}.json"
        if (cached := read_cache_record(path)) is not None:
            return SourceScan(cached["good"], tuple(Fault(*fault) for fault in cached["bad"]))
        result = rows.scan()
        content = {"good": result.valid_rows, "bad": list(map(astuple, result.faults))}
        write_cache_record(path, content)
        return result

    def _cache_key(self, rows: Rows) -> str:
        """Return a hash of the content of the rows and of the task."""
        parts = [CACHE_FORMAT, rows.fingerprint, rows.files, self.config.task.training_options]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _accept(self, key: str, rows: Rows, scan: SourceScan) -> ScannedSource:
        check_invalid_rows(scan, rows.name, self.config.data)
        return ScannedSource(key, rows, scan.valid_rows, scan.faults)


def scan_sources(reader: SourceReader) -> tuple[tuple[ScannedSource, ...], ...]:
    """Return data.train and data.eval, and the sources of data.mix, each read through once.

    All sources are opened first, so that faults of their first rows are found at once. No library
    that takes seconds to import is needed. Raises DtlError for faults.
    """
    data = reader.config.data
    named = {"data.train": data.train, "data.eval": data.eval}
    named |= {f"data.mix[{number}]": source for number, source in enumerate(data.mix)}
    opened = {key: reader.open(key, source) for key, source in named.items() if source is not None}
    scanned = [
        reader.scan_streamed(key, rows)
        if key == "data.train" and data.train.streaming
        else reader.scan(key, rows)
        for key, rows in opened.items()
    ]
    mixed_from = len(scanned) - len(data.mix)
    return tuple(scanned[:mixed_from]), tuple(scanned[mixed_from:])


def check_invalid_rows(scan: SourceScan, name: str, data: Data) -> None:
    """Raise DtlError for invalid rows: for any, or for more than may be skipped."""
    faults, total = scan.faults, scan.valid_rows + len(scan.faults)
    if faults and data.on_bad_row == "fail":
        raise DtlError(*faults[:MAX_FAULTS_DISPLAYED])
    if faults and (scan.valid_rows == 0 or len(faults) / total > data.max_bad_fraction):
        raise DtlError.of(
            "data.max_bad_fraction",
            f"{len(faults)} of {total} rows of {name} are invalid, and the share that may be "
            f"skipped is {data.max_bad_fraction:g}: {_format_first(faults)}",
            "fix the rows" if scan.valid_rows == 0 else "fix the rows, or raise the share",
        )


def _format_first(faults: tuple[Fault, ...]) -> str:
    first = [f"{fault.location} ({fault.problem})" for fault in faults[:MAX_FAULTS_IN_LINE]]
    return ", ".join([*first, "..."] if len(faults) > len(first) else first)

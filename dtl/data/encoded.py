"""Encoded examples on disk: written once by one process, read by all through a memory map."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dtl.data.source import Row
from dtl.errors import DtlError, RunFailed
from dtl.mini.cache import folder as cache_folder

FORMAT = 1
ROWS_A_GROUP = 1024


@dataclass(frozen=True)
class Encoded:
    """One example as the model reads it.

    `values`: lists of whole numbers, or single numbers. `length`: what padding costs, in tokens or
    frames. `targets`: how many predictions the loss counts.
    """

    values: dict[str, Any]
    length: int
    targets: int


@dataclass(frozen=True)
class Skip:
    """Why a row is left out. Rows are counted by reason and reported, never dropped in silence."""

    reason: str


@dataclass(frozen=True)
class Census:
    """What became of the rows of one source."""

    rows: int
    kept: int
    skipped: dict[str, int] = field(default_factory=dict)

    def line(self, name: str) -> str:
        left_out = "".join(f", {count} left out ({why})" for why, count in self.skipped.items())
        return f"{name}: {self.kept} of {self.rows} examples{left_out}"


def cache_key(**parts: Any) -> str:
    """A name for encoded data that changes whenever anything it depends on changes."""
    text = json.dumps({"format": FORMAT, **parts}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class EncodedData:
    """Encoded examples, memory-mapped; `data[i]` is the values of example `i`."""

    def __init__(self, folder: Path) -> None:
        import pyarrow as pa

        self.folder = folder
        self.census = Census(**json.loads((folder / "census.json").read_text(encoding="utf-8")))
        self.table = pa.ipc.open_file(pa.memory_map(str(folder / "examples.arrow"))).read_all()
        self.lengths: np.ndarray = self.table.column("length").to_numpy()
        self.targets: np.ndarray = self.table.column("targets").to_numpy()
        self.rows: np.ndarray = self.table.column("row").to_numpy()
        self._values = self.table.drop_columns(["length", "targets", "row"])
        self._columns = {name: self._values.column(name) for name in self._values.column_names}

    @property
    def key(self) -> str:
        """Names the content: the data, the tokenizer and the task's options."""
        return self.folder.name

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: column[int(index)].as_py() for name, column in self._columns.items()}


def encode(
    rows: Iterable[Row], encoder: Callable[[Row], Encoded | Skip], *, key: str, place: str
) -> EncodedData:
    """Encode all rows into the cache, unless they are there. Whole or not at all.

    Raises DtlError when no example is left to learn from.
    """
    folder = cache_folder() / "encoded" / key
    if not (folder / "census.json").exists():
        _write(rows, encoder, folder)
    data = EncodedData(folder)
    if len(data) == 0:
        reasons = "; ".join(f"{count} x {why}" for why, count in data.census.skipped.items())
        raise DtlError.of(
            place,
            f"none of {data.census.rows} examples has anything to learn from ({reasons})",
            "check the columns, or raise task.max_length",
        )
    return data


def wait_for(key: str, *, timeout_seconds: float = 3600.0) -> EncodedData:
    """The encoded data that another process is making."""
    folder = cache_folder() / "encoded" / key
    start = time.monotonic()
    while not (folder / "census.json").exists():
        if time.monotonic() - start > timeout_seconds:
            raise RunFailed.of(
                str(folder),
                f"no encoded data after {timeout_seconds:.0f} s",
                "see the log of rank 0",
            )
        time.sleep(0.1)
    return EncodedData(folder)


def _write(rows: Iterable[Row], encoder: Callable[[Row], Encoded | Skip], folder: Path) -> None:
    """Write beside, then rename. No other writer, on any machine, has the same name beside."""
    staged = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.staged")
    staged.mkdir(parents=True)
    try:
        _write_files(rows, encoder, staged)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    publish(staged, folder)


def _write_files(
    rows: Iterable[Row], encoder: Callable[[Row], Encoded | Skip], staged: Path
) -> None:
    import pyarrow as pa

    skipped: Counter[str] = Counter()
    total = kept = 0
    writer = None
    group: list[dict[str, Any]] = []

    def flush() -> None:
        nonlocal writer
        batch = pa.RecordBatch.from_pylist(group, schema=writer.schema if writer else None)
        if writer is None:
            writer = _Writer(
                pa.ipc.new_file(str(staged / "examples.arrow"), batch.schema), batch.schema
            )
        writer.file.write_batch(batch)
        group.clear()

    for row in rows:
        total += 1
        result = encoder(row)
        if isinstance(result, Skip):
            skipped[result.reason] += 1
            continue
        kept += 1
        group.append(
            {**result.values, "row": row.index, "length": result.length, "targets": result.targets}
        )
        if len(group) == ROWS_A_GROUP:
            flush()
    if group or writer is None:
        if not group and writer is None:
            schema = pa.schema([(name, pa.int64()) for name in ("row", "length", "targets")])
            writer = _Writer(pa.ipc.new_file(str(staged / "examples.arrow"), schema), schema)
        else:
            flush()
    assert writer is not None
    writer.file.close()
    census = Census(rows=total, kept=kept, skipped=dict(skipped))
    (staged / "census.json").write_text(json.dumps(asdict(census)), encoding="utf-8")


@dataclass
class _Writer:
    file: Any
    schema: Any


def publish(staged: Path, folder: Path) -> None:
    """Give a finished folder its name in one move; a twin that was first is kept."""
    try:
        staged.rename(folder)
    except OSError:
        if not folder.exists():
            raise
        shutil.rmtree(staged)

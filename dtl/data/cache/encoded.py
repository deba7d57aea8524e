"""Encoded examples on disk: written once by one process, read by all through a memory map."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from dtl.core.cache_folder import cache_folder
from dtl.core.errors import DtlError, RunFailed
from dtl.core.files import staged_folder
from dtl.data.example import EncodedExample, Skip

if TYPE_CHECKING:
    from dtl.data.sources.rows import Row

FORMAT_VERSION = 4
INDEX_FILE = "index.json"
SKIPPED_ROWS_FILE = "left_out.json"
GROUPS_FILE = "groups.json"
NO_GROUP = "(none)"  # of a row that has no value in the column
DTYPES = ("<i4", "<f4", "<i2", "|u1")
NARROW_DTYPES = {np.dtype(np.int16): "<i2", np.dtype(np.uint8): "|u1"}  # samples and pixels
PER_EXAMPLE = ("length", "targets", "row")


@dataclass(frozen=True)
class EncodingSummary:
    """What became of the rows of one source."""

    rows: int
    examples: int
    skipped: dict[str, int] = field(default_factory=dict)

    def format_line(self, name: str) -> str:
        skipped = "".join(f", {count} left out ({why})" for why, count in self.skipped.items())
        return f"{name}: {self.examples} of {self.rows} examples{skipped}"


def evenly_spaced_indices(total: int, count: int) -> list[int]:
    """So many numbers below the total, or all of them."""
    spaced = np.linspace(0, total - 1, min(count, total))
    return [int(number) for number in np.unique(spaced.astype(int))]


def cache_key(**parts: Any) -> str:
    """A name for encoded data that changes whenever anything it depends on changes."""
    text = json.dumps({"format": FORMAT_VERSION, **parts}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class ExtraValues(Protocol):
    """Something more of each example, by its number."""

    def __getitem__(self, index: int) -> Any: ...


class EncodedData:
    """Encoded examples, memory-mapped; `data[i]` is the values of example `i`. `beside`: by name,
    what else there is of each."""

    def __init__(self, folder: Path, **extras: ExtraValues) -> None:
        self.folder = folder
        self._extras = extras
        index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        self.summary = EncodingSummary(**index["census"])
        numbers = {name: memory_map(folder / f"{name}.numbers", "<i8") for name in PER_EXAMPLE}
        self.lengths, self.targets, self.rows = (numbers[name] for name in PER_EXAMPLE)
        self._columns = {
            name: _RaggedColumn.open(folder, name, **kind) for name, kind in index["values"]
        }

    @property
    def skipped_rows(self) -> dict[int, str]:
        """Number of each row that is no example -> the reason."""
        pairs = json.loads((self.folder / SKIPPED_ROWS_FILE).read_text(encoding="utf-8"))
        return {int(row): str(reason) for row, reason in pairs}

    @cached_property
    def groups(self) -> list[str] | None:
        """The group of each example; None where scores are not broken down."""
        path = self.folder / GROUPS_FILE
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    @property
    def key(self) -> str:
        """Names the content: the data, the tokenizer and the task's options."""
        return self.folder.name

    @property
    def shortest_example(self) -> int:
        """An example to stand in where a micro-batch has none."""
        return int(np.argmin(self.lengths))

    def count_targets(self, ids: np.ndarray) -> int:
        """The targets of these examples together."""
        return int(self.targets[ids].sum())

    def format_summary(self, name: str) -> str:
        """What became of the rows, in words."""
        return self.summary.format_line(name)

    def sample(self, count: int) -> list[dict[str, Any]]:
        """The values of so many examples, evenly spaced."""
        return [self[number] for number in evenly_spaced_indices(len(self), count)]

    def count_values(self, name: str) -> np.ndarray:
        """How many numbers each example has under this name."""
        return np.diff(self._columns[name].ends, prepend=0)

    def __len__(self) -> int:
        return self.summary.examples

    def __getitem__(self, index: int) -> dict[str, Any]:
        found = {name: column[int(index)] for name, column in self._columns.items()}
        return found | {name: more[int(index)] for name, more in self._extras.items()}


@dataclass(frozen=True)
class _RaggedColumn:
    """Values of all examples end to end, and where each example's end."""

    numbers: np.ndarray
    ends: np.ndarray
    single: bool

    @classmethod
    def open(cls, folder: Path, name: str, *, dtype: str, single: bool) -> _RaggedColumn:
        if dtype not in DTYPES or Path(name).name != name:
            raise RunFailed.of(
                str(folder), f"is not what dtl wrote ({name}: {dtype})", "remove the folder"
            )
        numbers, ends = (
            memory_map(folder / f"{name}.values", dtype),
            memory_map(folder / f"{name}.ends", "<i8"),
        )
        return cls(numbers, ends, single)

    def __getitem__(self, index: int) -> Any:
        start = self.ends[index - 1] if index else 0
        part = self.numbers[start : self.ends[index]]
        return part[0].item() if self.single else np.asarray(part)


def memory_map(file: Path, dtype: str) -> np.ndarray:
    """An array on disk, read where it lies; an empty file cannot be mapped."""
    if file.stat().st_size == 0:
        return np.empty(0, dtype=dtype)
    return np.asarray(np.memmap(file, dtype=dtype, mode="r"))


def encode_rows(
    rows: Iterable[Row],
    encoder: Callable[[Row], EncodedExample | Skip],
    *,
    key: str,
    location: str,
    group_by: str | None = None,
) -> EncodedData:
    """Encode all rows into the cache, unless they are there. Whole or not at all.

    `group_by`: the column whose value travels with each example; part of the key.

    Raises DtlError when no example is left to learn from.
    """
    folder = cache_folder() / "encoded" / key
    if not (folder / INDEX_FILE).exists():
        _write_folder(rows, encoder, folder, group_by)
    data = EncodedData(folder)
    if len(data) == 0:
        reasons = "; ".join(f"{count} x {why}" for why, count in data.summary.skipped.items())
        raise DtlError.of(
            location,
            f"none of {data.summary.rows} examples has anything to learn from ({reasons})",
            "check the columns, or raise task.max_length",
        )
    return data


def wait_for_encoded_data(key: str, *, timeout_seconds: float = 3600.0) -> EncodedData:
    """The encoded data that another process is making."""
    folder = cache_folder() / "encoded" / key
    wait_for_file(folder / INDEX_FILE, timeout_seconds=timeout_seconds)
    return EncodedData(folder)


def wait_for_file(file: Path, *, timeout_seconds: float = 3600.0) -> None:
    """Until another process has made it, the last one of what lies in its folder."""
    start = time.monotonic()
    while not file.exists():
        if time.monotonic() - start > timeout_seconds:
            raise RunFailed.of(
                str(file.parent),
                f"no encoded data after {timeout_seconds:.0f} s",
                "see the log of rank 0",
            )
        time.sleep(0.1)


def format_group(row: Row, column: str) -> str:
    """The group of a row by its value in a column, in words."""
    value = row.fields.get(column)
    if value is None:
        return NO_GROUP
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _write_folder(
    rows: Iterable[Row],
    encoder: Callable[[Row], EncodedExample | Skip],
    folder: Path,
    group_by: str | None,
) -> None:
    """Write beside, then rename. No other writer, on any machine, has the same name beside."""
    with staged_folder(folder) as staged:
        _write_files(rows, encoder, staged, group_by)


def _write_files(
    rows: Iterable[Row],
    encoder: Callable[[Row], EncodedExample | Skip],
    staged: Path,
    group_by: str | None,
) -> None:
    skipped_rows: list[tuple[int, str]] = []
    groups: list[str] = []
    examples = 0
    with ExitStack() as open_files:
        numbers = {
            name: open_files.enter_context((staged / f"{name}.numbers").open("wb"))
            for name in PER_EXAMPLE
        }
        columns: dict[str, _ColumnWriter] = {}
        for row in rows:
            example = encoder(row)
            if isinstance(example, Skip):
                skipped_rows.append((row.index, example.reason))
                continue
            examples += 1
            if group_by is not None:
                groups.append(format_group(row, group_by))
            for name, number in zip(
                PER_EXAMPLE, (example.length, example.targets, row.index), strict=True
            ):
                numbers[name].write(np.int64(number).astype("<i8").tobytes())
            for name, value in example.values.items():
                if name not in columns:
                    columns[name] = open_files.enter_context(_ColumnWriter(staged, name, value))
                columns[name].add(value)
    skipped = Counter(reason for _, reason in skipped_rows)
    census = EncodingSummary(
        rows=examples + len(skipped_rows), examples=examples, skipped=dict(skipped)
    )
    (staged / SKIPPED_ROWS_FILE).write_text(json.dumps(skipped_rows), encoding="utf-8")
    if group_by is not None:
        (staged / GROUPS_FILE).write_text(json.dumps(groups), encoding="utf-8")
    index = {
        "census": asdict(census),
        "values": [[name, column.kind] for name, column in columns.items()],
    }
    (staged / INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")


def _storage_dtype(array: np.ndarray) -> str:
    whole = array.dtype.kind in "iub" or array.size == 0
    return NARROW_DTYPES.get(array.dtype, "<i4" if whole else "<f4")


def convert_to_stored_dtypes(values: dict[str, Any]) -> dict[str, Any]:
    """Values as they would come back from the cache."""
    arrays = {name: np.asarray(value) for name, value in values.items()}
    kept = {
        name: np.atleast_1d(array).astype(_storage_dtype(array), casting="same_kind")
        for name, array in arrays.items()
    }
    return {name: kept[name] if arrays[name].ndim else kept[name][0].item() for name in kept}


class _ColumnWriter:
    """Appends the values of one example after another: whole numbers or fractions, one or many."""

    def __init__(self, folder: Path, name: str, first: Any) -> None:
        array = np.asarray(first)
        self._dtype = _storage_dtype(array)
        self.kind = {"dtype": self._dtype, "single": array.ndim == 0}
        self._paths = folder / f"{name}.values", folder / f"{name}.ends"
        self._end = 0

    def __enter__(self) -> Self:
        self._values, self._ends = (path.open("wb") for path in self._paths)
        return self

    def __exit__(self, *_: object) -> None:
        self._values.close()
        self._ends.close()

    def add(self, value: Any) -> None:
        array = np.atleast_1d(np.asarray(value)).astype(self._dtype, casting="same_kind")
        self._end += array.size
        self._values.write(array.tobytes())
        self._ends.write(np.int64(self._end).astype("<i8").tobytes())

"""Rows of one local file, read as a stream; each suffix has its reader.

A reader yields every row with its place ("data/x.jsonl:57", counted from 1), a Fault where the row
cannot be read, or a FileFault, the last item, where nobody knows how many rows are lost.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from dtl.core.errors import DtlError, Fault


@dataclass(frozen=True)
class FileFault(Fault):
    """A fault of a whole file, or of what is left of it. No such fault is ever skipped."""


Fields = dict[str, Any]
Item = tuple[str, Fields] | Fault
Reader = Callable[[Path, str], Iterator[Item]]


@dataclass(frozen=True)
class Spot:
    """Where a row stands in its file. `offset`: the byte at which it begins, or the number of the
    row in a table, from 0; `number`: of its line or row, from 1, as its place has it."""

    offset: int
    number: int


Spots = Iterator[tuple[Spot, Item]]

ROWS_A_BATCH = 1024
LONGEST_FIELD = 2**31 - 1  # characters; the csv module's own limit is 131,072
SAVE_AS_UTF8 = "save the file as UTF-8"
HALF_A_CHARACTER = "\\ud"  # begins an escaped surrogate; one without its other half is no text
KINDS = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_json_lines(path: Path, shown: str) -> Iterator[Item]:
    """One JSON object a line; empty lines are passed over."""
    return (item for _, item in json_line_spots(path, shown))


def json_line_spots(path: Path, shown: str) -> Spots:
    """The same, each with where its line begins."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            text = line if offset else line.removeprefix(BYTE_ORDER_MARK)
            if text.strip():
                yield Spot(offset, number), _json_row(text, f"{shown}:{number}")
            offset += len(line)


def json_line_at(spot: Spot, path: Path, place: str) -> Item:
    """The row on the line that begins there."""
    with path.open("rb") as file:
        file.seek(spot.offset)
        line = file.readline()
    return _json_row(line if spot.offset else line.removeprefix(BYTE_ORDER_MARK), place)


def read_json(path: Path, shown: str) -> Iterator[Item]:
    """A JSON list of objects, read whole; a file that starts with an object is read by lines."""
    if not starts_with(path, b"["):
        yield from read_json_lines(path, shown)
        return
    try:
        text = path.read_bytes().decode("utf-8-sig")
        items = json.loads(text)
    except UnicodeDecodeError as fault:
        yield FileFault(shown, _not_utf8(fault), SAVE_AS_UTF8)
    except (ValueError, RecursionError) as fault:
        line = f":{fault.lineno}" if isinstance(fault, json.JSONDecodeError) else ""
        yield FileFault(f"{shown}{line}", _json_problem(fault), "fix the file")
    else:
        may_be_half = HALF_A_CHARACTER in text.lower()
        for number, item in enumerate(items, start=1):
            yield _object(item, f"{shown}: item {number}", may_be_half=may_be_half)


def read_csv(path: Path, shown: str) -> Iterator[Item]:
    """Comma-separated text with a header; all values are text."""
    return (item for _, item in separated_spots(path, shown, separator=","))


def read_tsv(path: Path, shown: str) -> Iterator[Item]:
    """Tab-separated text with a header; all values are text."""
    return (item for _, item in separated_spots(path, shown, separator="\t"))


def read_parquet(path: Path, shown: str) -> Iterator[Item]:
    """A Parquet file, some rows at a time."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as table:
            yield from table_rows(table.iter_batches(batch_size=ROWS_A_BATCH), shown)
    except pa.ArrowException as fault:
        yield _unreadable(shown, "Parquet", fault)


def read_arrow(path: Path, shown: str) -> Iterator[Item]:
    """An Arrow file or stream, memory-mapped, one record batch at a time."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as mapped:
            if starts_with(path, b"ARROW1"):
                table = pa.ipc.open_file(mapped)
                batches = (table.get_batch(i) for i in range(table.num_record_batches))
            else:
                batches = iter(pa.ipc.open_stream(mapped))
            yield from table_rows(batches, shown)
    except pa.ArrowException as fault:
        yield _unreadable(shown, "Arrow", fault)


READERS: dict[str, Reader] = {
    ".jsonl": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}


def starts_with(path: Path, mark: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(64).removeprefix(BYTE_ORDER_MARK).lstrip().startswith(mark)


def _json_row(line: bytes, place: str) -> Item:
    try:
        text = line.decode()
        may_be_half = "\\" in text and HALF_A_CHARACTER in text.lower()
        return _object(json.loads(text), place, may_be_half=may_be_half)
    except UnicodeDecodeError as fault:
        return Fault(place, _not_utf8(fault), SAVE_AS_UTF8)
    except (ValueError, RecursionError) as fault:
        return Fault(place, _json_problem(fault), "fix or remove the line")


def _object(value: Any, place: str, *, may_be_half: bool) -> Item:
    if not isinstance(value, dict):
        kind = KINDS.get(type(value), "a number")
        return Fault(place, f"the row is {kind}", 'write a JSON object, such as {"text": "..."}')
    if may_be_half and not _is_text(json.dumps(value, ensure_ascii=False)):
        return Fault(
            place, "holds half a character (a surrogate without its other half)", "fix the text"
        )
    return place, value


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _json_problem(fault: Exception) -> str:
    if isinstance(fault, json.JSONDecodeError):
        return f"no valid JSON ({fault.msg.removesuffix(' at')} at column {fault.colno})"
    what = "nested too deep" if isinstance(fault, RecursionError) else "a number is too long"
    return f"no readable JSON ({what})"


def _not_utf8(fault: UnicodeDecodeError) -> str:
    return f"not UTF-8 text (byte 0x{fault.object[fault.start]:02x})"


def separated_spots(path: Path, shown: str, *, separator: str) -> Spots:
    """Rows of separated text, each with where it begins. A quoted value may hold line breaks."""
    with _open_text(path) as file:
        lines = _Measured(file, offset=len(BYTE_ORDER_MARK) * _has_mark(path))
        rows = _parsed(lines, separator)
        header, place, spot = list[str](), shown, Spot(0, 1)
        try:
            place = f"{shown}:1"
            for values in rows:
                item: Item | None = None
                if values and not header:
                    header, item = values, _header_fault(values, place)
                elif values:
                    item = _separated_row(values, header, place)
                if item is not None:
                    yield spot, item
                if isinstance(item, FileFault):
                    return
                spot = Spot(lines.offset, rows.line_num + 1)
                place = f"{shown}:{spot.number}"
        except csv.Error as fault:
            yield spot, FileFault(place, f"not readable ({fault})", "check the quotes of this row")


def header_of(path: Path, *, separator: str) -> list[str]:
    """The names of the columns, which are the first values in the file."""
    with _open_text(path) as file:
        return next(filter(None, _parsed(file, separator)), [])


def separated_row_at(
    spot: Spot, path: Path, place: str, *, header: list[str], separator: str
) -> Item:
    """The row that begins there."""
    with _open_text(path, offset=spot.offset) as file:
        try:
            return _separated_row(next(_parsed(file, separator), []), header, place)
        except csv.Error as fault:
            return Fault(place, f"not readable ({fault})", "check the quotes of this row")


def _open_text(path: Path, *, offset: int = 0) -> TextIOWrapper:
    file = path.open("rb")
    file.seek(offset)
    encoding = "utf-8" if offset else "utf-8-sig"
    return TextIOWrapper(file, encoding=encoding, newline="", errors="surrogateescape")


def _has_mark(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(BYTE_ORDER_MARK)) == BYTE_ORDER_MARK


def _parsed(lines: Iterable[str], separator: str) -> Any:
    csv.field_size_limit(LONGEST_FIELD)
    return csv.reader(lines, delimiter=separator, strict=True)


class _Measured:
    """Lines of a text file, and the byte up to which they have been read."""

    def __init__(self, file: TextIOWrapper, *, offset: int) -> None:
        self.offset = offset
        self._file = file

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            self.offset += len(line.encode("utf-8", "surrogateescape"))
            yield line


def _header_fault(header: list[str], place: str) -> FileFault | None:
    if not _is_text("".join(header)):
        return FileFault(place, "the header is not UTF-8 text", SAVE_AS_UTF8)
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        return FileFault(place, f"two columns are named '{twice[0]}'", "give each its own name")
    return None


def _separated_row(values: list[str], header: list[str], place: str) -> Item:
    if len(values) != len(header):
        return Fault(
            place,
            f"{len(values)} values for {len(header)} columns",
            "give every column a value, and quote values that hold the separator",
        )
    try:
        "".join(values).encode()
    except UnicodeEncodeError as fault:
        byte = ord(fault.object[fault.start]) & 0xFF
        return Fault(place, f"not UTF-8 text (byte 0x{byte:02x})", SAVE_AS_UTF8)
    return place, dict(zip(header, values, strict=True))


def table_rows(batches: Iterable[Any], shown: str, *, after: int = 0) -> Iterator[Item]:
    """The rows of record batches, of which so many stand before."""
    number = after
    for batch in batches:
        for found in _plain_rows(batch):
            number += 1
            place = f"{shown}: row {number}"
            if isinstance(found, Exception):
                yield Fault(place, _undecodable(found), "write the row again")
            else:
                yield place, found


def _plain_rows(batch: Any) -> Iterator[Fields | Exception]:
    """The rows of a record batch; one by one where a value in it cannot be decoded."""
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError):
        for place in range(batch.num_rows):
            try:
                yield batch.slice(place, 1).to_pylist()[0]
            except (ValueError, OverflowError) as fault:
                yield fault


def _undecodable(fault: Exception) -> str:
    if isinstance(fault, UnicodeDecodeError):
        return _not_utf8(fault)
    return f"a value cannot be read ({first_line(fault)})"


def _unreadable(shown: str, kind: str, fault: Exception) -> FileFault:
    return FileFault(
        shown, f"no readable {kind} file ({first_line(fault)})", "write the file again"
    )


def unopened(shown: str, fault: OSError) -> FileFault:
    """What keeps a file from being read."""
    reason = fault.strerror or first_line(fault)
    return FileFault(shown, f"cannot be read ({reason})", "check the file and its rights")


def first_line(fault: Exception) -> str:
    """What a library says, in one line."""
    return str(fault).splitlines()[0].rstrip(".") if str(fault) else type(fault).__name__


def reader_of(path: Path, shown: str) -> Reader:
    """The reader for a file's suffix. Raises DtlError for one that dtl does not read."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DtlError.of(
            shown,
            f"dtl reads no '{path.suffix}' files" if path.suffix else "the file has no suffix",
            f"convert it to one of {', '.join(READERS)}",
        )
    return reader

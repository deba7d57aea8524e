"""Rows of one local file, read as a stream; each suffix has its reader.

A reader yields every row with its place ("data/x.jsonl:57", counted from 1), or a Fault where the
row cannot be read.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dtl.errors import DtlError, Fault

Fields = dict[str, Any]
Item = tuple[str, Fields] | Fault
Reader = Callable[[Path, str], Iterator[Item]]

ROWS_A_BATCH = 1024
LONGEST_FIELD = 2**31 - 1  # characters; the csv module's own limit is 131,072
KINDS = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_json_lines(path: Path, shown: str) -> Iterator[Item]:
    """One JSON object a line; empty lines are passed over."""
    for number, line in _lines(path):
        if line.strip():
            yield _json_row(line, f"{shown}:{number}")


def read_json(path: Path, shown: str) -> Iterator[Item]:
    """A JSON list of objects, read whole; a file that starts with an object is read by lines."""
    if not _starts_with(path, b"["):
        yield from read_json_lines(path, shown)
        return
    try:
        items = json.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as fault:
        yield _not_utf8(shown, fault)
    except json.JSONDecodeError as fault:
        yield Fault(f"{shown}:{fault.lineno}", _json_problem(fault), "mend the file")
    else:
        for number, item in enumerate(items, start=1):
            yield _object(item, f"{shown}: item {number}")


def read_csv(path: Path, shown: str) -> Iterator[Item]:
    """Comma-separated text with a header; all values are text."""
    return _separated(path, shown, separator=",")


def read_tsv(path: Path, shown: str) -> Iterator[Item]:
    """Tab-separated text with a header; all values are text."""
    return _separated(path, shown, separator="\t")


def read_parquet(path: Path, shown: str) -> Iterator[Item]:
    """A Parquet file, some rows at a time."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as table:
            yield from _table_rows(table.iter_batches(batch_size=ROWS_A_BATCH), shown)
    except pa.ArrowException as fault:
        yield _unreadable(shown, "Parquet", fault)


def read_arrow(path: Path, shown: str) -> Iterator[Item]:
    """An Arrow file or stream, memory-mapped, one record batch at a time."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as mapped:
            if _starts_with(path, b"ARROW1"):
                table = pa.ipc.open_file(mapped)
                batches = (table.get_batch(i) for i in range(table.num_record_batches))
            else:
                batches = iter(pa.ipc.open_stream(mapped))
            yield from _table_rows(batches, shown)
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


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            yield number, line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line


def _starts_with(path: Path, mark: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(64).removeprefix(BYTE_ORDER_MARK).lstrip().startswith(mark)


def _json_row(line: bytes, place: str) -> Item:
    try:
        return _object(json.loads(line.decode()), place)
    except UnicodeDecodeError as fault:
        return _not_utf8(place, fault)
    except json.JSONDecodeError as fault:
        return Fault(place, _json_problem(fault), "mend or remove the line")


def _object(value: Any, place: str) -> Item:
    if isinstance(value, dict):
        return place, value
    kind = KINDS.get(type(value), "a number")
    return Fault(place, f"the row is {kind}", 'write a JSON object, such as {"text": "..."}')


def _json_problem(fault: json.JSONDecodeError) -> str:
    return f"no valid JSON ({fault.msg} at column {fault.colno})"


def _not_utf8(place: str, fault: UnicodeDecodeError) -> Fault:
    byte = fault.object[fault.start]
    return Fault(place, f"not UTF-8 text (byte 0x{byte:02x})", "save the file as UTF-8")


def _separated(path: Path, shown: str, *, separator: str) -> Iterator[Item]:
    csv.field_size_limit(LONGEST_FIELD)
    with path.open(encoding="utf-8-sig", newline="", errors="surrogateescape") as file:
        lines = csv.reader(file, delimiter=separator, strict=True)
        first, header, place = True, list[str](), shown
        try:
            place = f"{shown}:1"
            for values in lines:
                item: Item | None = None
                if values and first:
                    first, header = False, values
                    item = _header_fault(header, place)
                elif values:
                    item = _separated_row(values, header, place)
                if item is not None:
                    yield item
                place = f"{shown}:{lines.line_num + 1}"
        except csv.Error as fault:
            yield Fault(place, f"not readable ({fault})", "check the quotes of this row")


def _header_fault(header: list[str], place: str) -> Fault | None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        return Fault(place, f"two columns are named '{twice[0]}'", "give each its own name")
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
        return Fault(place, f"not UTF-8 text (byte 0x{byte:02x})", "save the file as UTF-8")
    return place, dict(zip(header, values, strict=True))


def _table_rows(batches: Iterator[Any], shown: str) -> Iterator[Item]:
    number = 0
    for batch in batches:
        for fields in batch.to_pylist():
            number += 1
            yield f"{shown}: row {number}", fields


def _unreadable(shown: str, kind: str, fault: Exception) -> Fault:
    first_line = str(fault).splitlines()[0].rstrip(".") if str(fault) else type(fault).__name__
    return Fault(shown, f"no readable {kind} file ({first_line})", "write the file again")


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

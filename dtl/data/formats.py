"""Rows of one local file, read as a stream; each suffix has its reader.

A reader yields every row with its place ("data/x.jsonl:57", counted from 1), a Fault where the row
cannot be read, or a FileFault, the last item, where nobody knows how many rows are lost.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtl.errors import DtlError, Fault


@dataclass(frozen=True)
class FileFault(Fault):
    """A fault of a whole file, or of what is left of it. No such fault is ever skipped."""


Fields = dict[str, Any]
Item = tuple[str, Fields] | Fault
Reader = Callable[[Path, str], Iterator[Item]]

ROWS_A_BATCH = 1024
LONGEST_FIELD = 2**31 - 1  # characters; the csv module's own limit is 131,072
SAVE_AS_UTF8 = "save the file as UTF-8"
HALF_A_CHARACTER = "\\ud"  # begins an escaped surrogate; one without its other half is no text
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
        text = path.read_bytes().decode("utf-8-sig")
        items = json.loads(text)
    except UnicodeDecodeError as fault:
        yield FileFault(shown, _not_utf8(fault), SAVE_AS_UTF8)
    except (ValueError, RecursionError) as fault:
        line = f":{fault.lineno}" if isinstance(fault, json.JSONDecodeError) else ""
        yield FileFault(f"{shown}{line}", _json_problem(fault), "mend the file")
    else:
        may_be_half = HALF_A_CHARACTER in text.lower()
        for number, item in enumerate(items, start=1):
            yield _object(item, f"{shown}: item {number}", may_be_half=may_be_half)


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
        text = line.decode()
        may_be_half = "\\" in text and HALF_A_CHARACTER in text.lower()
        return _object(json.loads(text), place, may_be_half=may_be_half)
    except UnicodeDecodeError as fault:
        return Fault(place, _not_utf8(fault), SAVE_AS_UTF8)
    except (ValueError, RecursionError) as fault:
        return Fault(place, _json_problem(fault), "mend or remove the line")


def _object(value: Any, place: str, *, may_be_half: bool) -> Item:
    if not isinstance(value, dict):
        kind = KINDS.get(type(value), "a number")
        return Fault(place, f"the row is {kind}", 'write a JSON object, such as {"text": "..."}')
    if may_be_half and not _is_text(json.dumps(value, ensure_ascii=False)):
        return Fault(
            place, "holds half a character (a surrogate without its other half)", "mend the text"
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
                if isinstance(item, FileFault):
                    return
                place = f"{shown}:{lines.line_num + 1}"
        except csv.Error as fault:
            yield FileFault(place, f"not readable ({fault})", "check the quotes of this row")


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


def _table_rows(batches: Iterator[Any], shown: str) -> Iterator[Item]:
    number = 0
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

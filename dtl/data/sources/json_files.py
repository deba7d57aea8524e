"""Readers of JSON Lines and JSON list files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dtl.core.errors import Fault
from dtl.data.sources.results import (
    BYTE_ORDER_MARK,
    UTF8_FIX,
    FileFault,
    PositionedResults,
    ReadResult,
    RowPosition,
    describe_decode_error,
    file_starts_with,
    is_encodable,
)

SURROGATE_ESCAPE = "\\ud"  # starts an escaped surrogate; an unpaired one is not valid text
JSON_TYPE_NAMES = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}


def read_json_lines(path: Path, display_name: str) -> Iterator[ReadResult]:
    """Read one JSON object per line; empty lines are ignored."""
    return (result for _, result in read_positioned_json_lines(path, display_name))


def read_positioned_json_lines(path: Path, display_name: str) -> PositionedResults:
    """Read one JSON object per line, each with the position of its line."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            text = line if offset else line.removeprefix(BYTE_ORDER_MARK)
            if text.strip():
                yield RowPosition(offset, number), _parse_json_row(text, f"{display_name}:{number}")
            offset += len(line)


def read_json_line(position: RowPosition, path: Path, location: str) -> ReadResult:
    """Read the row on the line at a position."""
    with path.open("rb") as file:
        file.seek(position.offset)
        line = file.readline()
    return _parse_json_row(
        line if position.offset else line.removeprefix(BYTE_ORDER_MARK), location
    )


def read_json(path: Path, display_name: str) -> Iterator[ReadResult]:
    """Read a JSON list of objects; a file that starts with an object is read as JSON Lines."""
    if not file_starts_with(path, b"["):
        yield from read_json_lines(path, display_name)
        return
    try:
        text = path.read_bytes().decode("utf-8-sig")
        items = json.loads(text)
    except UnicodeDecodeError as error:
        yield FileFault(display_name, describe_decode_error(error), UTF8_FIX)
    except (ValueError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        yield FileFault(f"{display_name}{line}", _describe_json_error(error), "fix the file")
    else:
        may_have_surrogate = SURROGATE_ESCAPE in text.lower()
        for number, item in enumerate(items, start=1):
            yield _validate_json_object(
                item, f"{display_name}: item {number}", may_have_surrogate=may_have_surrogate
            )


def _parse_json_row(line: bytes, location: str) -> ReadResult:
    try:
        text = line.decode()
        may_have_surrogate = "\\" in text and SURROGATE_ESCAPE in text.lower()
        return _validate_json_object(
            json.loads(text), location, may_have_surrogate=may_have_surrogate
        )
    except UnicodeDecodeError as error:
        return Fault(location, describe_decode_error(error), UTF8_FIX)
    except (ValueError, RecursionError) as error:
        return Fault(location, _describe_json_error(error), "fix or remove the line")


def _validate_json_object(value: Any, location: str, *, may_have_surrogate: bool) -> ReadResult:
    if not isinstance(value, dict):
        kind = JSON_TYPE_NAMES.get(type(value), "a number")
        return Fault(
            location, f"the row is {kind}, not a JSON object", 'write an object, as {"text": "..."}'
        )
    if may_have_surrogate and not is_encodable(json.dumps(value, ensure_ascii=False)):
        return Fault(
            location, "the row has an unpaired surrogate, which is not valid text", "fix the text"
        )
    return location, value


def _describe_json_error(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"invalid JSON ({error.msg.removesuffix(' at')} at column {error.colno})"
    reason = "nested too deep" if isinstance(error, RecursionError) else "a number is too long"
    return f"unreadable JSON ({reason})"

"""Reads JSON Lines and JSON list files."""

from __future__ import annotations

import json
from typing import Any

from dtl.config.schema.data_files import FileOptions
from dtl.core.errors import Fault
from dtl.data.sources.data_file import DECOMPRESSION_ERRORS, DataFile
from dtl.data.sources.file_reader import FileReader, TextFileReader
from dtl.data.sources.results import (
    FileFault,
    PositionedResults,
    ReadResult,
    RowPosition,
    is_encodable,
)
from dtl.data.sources.text_encoding import TextEncoding, find_encoding

SURROGATE_ESCAPE = "\\ud"  # starts an escaped surrogate; an unpaired one is not valid text
START_BYTES = 256  # enough to see whether a file begins with a bracket
JSON_TYPE_NAMES = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}


class JsonLinesReader(TextFileReader):
    """Reads JSON Lines: one object per line; empty lines are ignored."""

    label = "JSON Lines"
    option_names = frozenset({"encoding"})

    def read_positioned(self) -> PositionedResults:
        for number, (offset, line) in enumerate(self.iter_lines(), start=1):
            if not self.encoding.is_blank(line):
                location = f"{self.file.display_name}:{number}"
                yield RowPosition(offset, number), _parse_row(line, location, self.encoding)

    def read_at(self, position: RowPosition) -> ReadResult:
        location = f"{self.file.display_name}:{position.number}"
        _, line = next(self.iter_lines(position.offset), (0, b""))
        return _parse_row(line, location, self.encoding)


class JsonListReader(TextFileReader):
    """Reads one JSON list of objects, also as the only such list of an object."""

    label = "JSON list"
    option_names = frozenset({"encoding"})

    def find_streaming_fault(self, location: str) -> Fault | None:
        return Fault(
            f"{location}.streaming",
            f"{self.file.display_name} is one JSON list, which cannot be streamed",
            "convert it to JSON Lines (one object per line)",
        )

    def read_positioned(self) -> PositionedResults:
        name, encoding, nowhere = self.file.display_name, self.encoding, RowPosition(0, 0)
        try:
            with self.file.open() as stream:
                text = encoding.decode(stream.read()[encoding.mark_bytes :])
            items = _find_list(json.loads(text))
        except UnicodeDecodeError as error:
            yield nowhere, FileFault(name, encoding.describe_error(error), encoding.fix)
        except (ValueError, RecursionError) as error:
            line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
            yield nowhere, FileFault(f"{name}{line}", _describe_json_error(error), "fix the file")
        else:
            if items is None:
                yield (
                    nowhere,
                    FileFault(
                        name,
                        "the file is one JSON object",
                        "write a list of objects, one for each row",
                    ),
                )
                return
            may_have_surrogate = SURROGATE_ESCAPE in text.lower()
            for number, item in enumerate(items, start=1):
                location = f"{name}: item {number}"
                yield (
                    RowPosition(number - 1, number),
                    _validate_json_object(item, location, may_have_surrogate=may_have_surrogate),
                )

    def read_at(self, position: RowPosition) -> ReadResult:
        raise NotImplementedError("a JSON list is not streamed")


def open_json(file: DataFile, options: FileOptions) -> FileReader:
    """Return the reader of a JSON file, which is a list or JSON Lines."""
    try:
        start = file.read_sample(START_BYTES)
    except (OSError, *DECOMPRESSION_ERRORS):
        start = b""  # the reading reports it
    encoding = find_encoding(start, named=options.encoding)
    text = encoding.decode_valid(start).lstrip()
    is_list = text.startswith("[") or text[1:].lstrip(" ").startswith(("\n", "\r"))
    return JsonListReader(file, options) if is_list else JsonLinesReader(file, options)


def _find_list(value: Any) -> list[Any] | None:
    """Return a list, or the only list of objects in an object; None: there is none, or several."""
    if isinstance(value, list):
        return value
    lists = [
        items
        for items in value.values()
        if isinstance(items, list) and items and isinstance(items[0], dict)
    ]
    return lists[0] if len(lists) == 1 else None


def _parse_row(line: bytes, location: str, encoding: TextEncoding) -> ReadResult:
    try:
        text = encoding.decode(line)
        may_have_surrogate = "\\" in text and SURROGATE_ESCAPE in text.lower()
        return _validate_json_object(
            json.loads(text), location, may_have_surrogate=may_have_surrogate
        )
    except UnicodeDecodeError as error:
        return Fault(location, encoding.describe_error(error), encoding.fix)
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

"""The results that file readers yield: rows with locations and positions, and faults."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtl.core.errors import Fault

UTF8_FIX = "save the file as UTF-8"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class FileFault(Fault):
    """A fault of a file, or of the rest of it. It is never skipped."""


Fields = dict[str, Any]
ReadResult = tuple[str, Fields] | Fault


@dataclass(frozen=True)
class RowPosition:
    """The position of a row in its file. `offset`: its first byte, or its row index in a table,
    from 0; `number`: its line or row number, from 1, as its location has it."""

    offset: int
    number: int


@dataclass(frozen=True)
class FormatDescription:
    """The format of a source in words, such as CSV, and what was detected in its files."""

    name: str
    details: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name + (f" ({', '.join(self.details)})" if self.details else "")


PositionedResults = Iterator[tuple[RowPosition, ReadResult]]


def file_starts_with(path: Path, prefix: bytes) -> bool:
    """Return whether a file starts with these bytes, after a byte order mark and whitespace."""
    with path.open("rb") as file:
        return file.read(64).removeprefix(BYTE_ORDER_MARK).lstrip().startswith(prefix)


def is_encodable(text: str) -> bool:
    """Return whether a text can be encoded as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def describe_decode_error(error: UnicodeDecodeError) -> str:
    """Return the problem of bytes that are not UTF-8."""
    return f"not UTF-8 text (byte 0x{error.object[error.start]:02x})"


def os_error_fault(display_name: str, error: OSError) -> FileFault:
    """Return the error of a file that cannot be opened or read."""
    reason = error.strerror or first_error_line(error)
    return FileFault(
        display_name,
        f"the file cannot be read ({reason})",
        "check that the file exists and its permissions",
    )


def first_error_line(error: Exception) -> str:
    """Return the first line of an exception's message."""
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__

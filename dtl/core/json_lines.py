"""Lines of JSON that each end with their CRC-32, so that a damaged line is found and named."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtl.core.errors import DtlError

CHECKSUM = "crc32"  # key of a line: the checksum of all before it
TOTAL = "records"  # key of the last line of a file that is written at once: the number of lines
_SUFFIX = re.compile(rb', "crc32": "([0-9a-f]{8})"\}\Z')

Line = dict[str, Any]


@dataclass(frozen=True)
class DamagedLine:
    """A line that is not what was written: its number, from 1, and why."""

    number: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.number} {self.reason}"


def encode_line(value: Line, *, ensure_ascii: bool = True) -> bytes:
    """Return a line with its checksum and its line feed. `value` has a key or more."""
    content = json.dumps(value, ensure_ascii=ensure_ascii).encode()[:-1]
    return content + f', "{CHECKSUM}": "{zlib.crc32(content):08x}"}}\n'.encode()


def decode_line(line: bytes) -> Line:
    """Return the value of a line without its line feed. Raises ValueError with a reason."""
    found = _SUFFIX.search(line)
    if found is None:
        raise ValueError("does not end with its checksum")
    content = line[: found.start()]
    if f"{zlib.crc32(content):08x}".encode() != found[1]:
        raise ValueError("does not have its CRC-32")
    value: Line = json.loads(content + b"}")
    return value


def iter_lines(path: Path) -> Iterator[Line | DamagedLine]:
    """Yield each line of a log; nothing where there is no file. An incomplete last line, which is
    being written or was cut by a kill, is left out."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield decode_line(line[:-1])
            except ValueError as fault:
                yield DamagedLine(number, str(fault))


def encode_lines(values: Iterable[Line]) -> str:
    """Return the text of a file that is written at once. Its last line has the number of lines."""
    values = list(values)
    if values:
        values[-1] = {**values[-1], TOTAL: len(values)}
    return b"".join(encode_line(value) for value in values).decode()


def read_lines(path: Path) -> list[Line]:
    """Return all lines of a file that was written at once. Raises DtlError where one is damaged or
    missing."""
    lines = list(iter_lines(path))
    damaged = [line for line in lines if isinstance(line, DamagedLine)]
    values = [line for line in lines if not isinstance(line, DamagedLine)]
    total = values[-1].pop(TOTAL, None) if values and not damaged else None
    if damaged or total != len(values):
        reason = str(damaged[0]) if damaged else "lines are missing"
        raise DtlError.of(
            str(path),
            f"the file is damaged: {reason}",
            "restore it from a copy, or evaluate again with `dtl evaluate`",
        )
    return values

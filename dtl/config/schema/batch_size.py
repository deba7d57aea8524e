"""The size of a global batch: a number of examples, tokens or seconds of audio."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from dtl.config.schema.base import MAX_NUMBER, ConfigFault, raise_config_faults

Unit = Literal["examples", "tokens", "seconds"]
COUNTS_PER_UNIT = {"examples": 1, "tokens": 1, "seconds": 1000}  # audio is counted in milliseconds
PATTERN = re.compile(r"(-?\d+(?:\.\d+)?) +(examples|tokens|seconds)")


@dataclass(frozen=True)
class BatchSize:
    """A number and its unit; the number of examples or tokens is an integer."""

    number: float
    unit: Unit = "examples"

    @property
    def limit(self) -> int:
        """The size in examples, tokens or milliseconds."""
        return round(self.number * COUNTS_PER_UNIT[self.unit])

    def __str__(self) -> str:
        return f"{format_number(self.number)} {self.unit}"


def format_number(number: float) -> str:
    """Return the number without an empty fraction: 120.0 -> '120'."""
    return str(int(number)) if number == int(number) else str(number)


def _parse(value: Any) -> BatchSize:
    """Return the size: an integer counts examples, a text names its unit."""
    if isinstance(value, BatchSize):
        return value
    text = f"{value} examples" if type(value) is int else value
    match = PATTERN.fullmatch(text.strip()) if isinstance(text, str) else None
    raise_config_faults(list(_faults(value, match))[:1])
    assert match is not None
    number, unit = float(match[1]), cast(Unit, match[2])
    return BatchSize(number if unit == "seconds" else int(number), unit)


def _faults(value: Any, match: re.Match[str] | None) -> Iterator[ConfigFault]:
    if match is None:
        text = f"'{value}'" if isinstance(value, str) else json.dumps(value, default=str)
        yield ConfigFault(
            problem=f"{text} is not a batch size",
            fix="write a number of examples, such as 16, or '8192 tokens' or '120 seconds'",
        )
        return
    number, unit = float(match[1]), match[2]
    if unit != "seconds" and not number.is_integer():
        yield ConfigFault(
            problem=f"{value} is not an integer", fix=f"write an integer number of {unit}"
        )
    if number * COUNTS_PER_UNIT[unit] < 1:
        yield ConfigFault(problem=f"{value} is too small", fix=f"write 1 or more {unit}")
    if number > MAX_NUMBER:
        yield ConfigFault(problem=f"{value} is too large", fix=f"write {MAX_NUMBER:,} or less")


def _serialize(size: BatchSize) -> int | str:
    return int(size.number) if size.unit == "examples" else str(size)


GlobalBatchSize = Annotated[
    BatchSize,
    BeforeValidator(_parse),
    PlainSerializer(_serialize),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1},
                {"type": "string", "pattern": r"^\s*\d+(\.\d+)? +(examples|tokens|seconds)\s*$"},
            ]
        }
    ),
]

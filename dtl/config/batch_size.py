"""The size of a global batch: so many examples, tokens or seconds of sound."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from dtl.config.record import ConfigFault, refuse

Unit = Literal["examples", "tokens", "seconds"]
COUNTED = {"examples": 1, "tokens": 1, "seconds": 1000}  # sound is counted in milliseconds
_WRITTEN = re.compile(r"(-?\d+(?:\.\d+)?) +(examples|tokens|seconds)")


@dataclass(frozen=True)
class BatchSize:
    """`number`: whole, but for seconds."""

    number: float
    unit: Unit = "examples"

    @property
    def limit(self) -> int:
        """In whole examples, tokens or milliseconds."""
        return round(self.number * COUNTED[self.unit])

    def __str__(self) -> str:
        return f"{told(self.number)} {self.unit}"


def told(number: float) -> str:
    """A number without an empty fraction: 120.0 -> '120'."""
    return str(int(number)) if number == int(number) else str(number)


def _read(value: Any) -> BatchSize:
    """A whole number counts examples; a text names the unit."""
    if isinstance(value, BatchSize):
        return value
    text = f"{value} examples" if type(value) is int else value
    found = _WRITTEN.fullmatch(text.strip()) if isinstance(text, str) else None
    refuse(list(_faults(value, found))[:1])
    assert found is not None
    number, unit = float(found[1]), cast(Unit, found[2])
    return BatchSize(number if unit == "seconds" else int(number), unit)


def _faults(value: Any, found: re.Match[str] | None) -> Iterator[ConfigFault]:
    if found is None:
        shown = f"'{value}'" if isinstance(value, str) else json.dumps(value, default=str)
        yield ConfigFault(
            problem=f"{shown} is no size of a batch",
            fix="write a number of examples, such as 16, or '8192 tokens' or '120 seconds'",
        )
        return
    number, unit = float(found[1]), found[2]
    if unit != "seconds" and not number.is_integer():
        yield ConfigFault(problem=f"{value} is not whole", fix=f"write whole {unit}")
    if number * COUNTED[unit] < 1:
        yield ConfigFault(problem=f"{value} is too small", fix=f"write 1 or more {unit}")


def _write(size: BatchSize) -> int | str:
    return int(size.number) if size.unit == "examples" else str(size)


GlobalBatchSize = Annotated[
    BatchSize,
    BeforeValidator(_read),
    PlainSerializer(_write),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1},
                {"type": "string", "pattern": r"^\s*\d+(\.\d+)? +(examples|tokens|seconds)\s*$"},
            ]
        }
    ),
]

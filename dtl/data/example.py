"""An encoded example, or the reason to skip a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PARTNER = "partner"  # key of the values of another example, for a task that reads them


@dataclass(frozen=True)
class EncodedExample:
    """One example as the model reads it.

    `values`: integers or floats, single or arrays; int16 and uint8 arrays keep their dtype.
    `length`: the length that is padded, in tokens or frames. `targets`: the number of predictions
    that count in the loss. `dropped`: features of the row that its chat template does not render.
    `notes`: what is unusual about the example; rows are reported by note.
    """

    values: dict[str, Any]
    length: int
    targets: int
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Skip:
    """The reason to skip a row. Skipped rows are counted and reported by reason."""

    reason: str

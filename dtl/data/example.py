"""A row as a model reads it; or why it is left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PAD_TO_MULTIPLE = 8  # to which tasks pad


@dataclass(frozen=True)
class EncodedExample:
    """One example as the model reads it.

    `values`: whole numbers or fractions, one or many; arrays of int16 or uint8 are kept as such.
    `length`: what padding costs, in tokens or frames. `targets`: how many predictions the loss
    counts.
    """

    values: dict[str, Any]
    length: int
    targets: int


@dataclass(frozen=True)
class Skip:
    """Why a row is left out. Rows are counted by reason and reported, never dropped in silence."""

    reason: str

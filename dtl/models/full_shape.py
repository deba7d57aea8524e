"""The full shape of a parameter, also where an engine has partitioned it.

A partitioned parameter is empty on its rank, and only the engine that has partitioned it knows its
shape. This folder is below `engine/` and cannot import it, and the shape is read deep inside calls
that need no engine otherwise. Therefore the engine registers how to read a shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    ShapeReader = Callable[[Tensor], tuple[int, ...] | None]

_readers: list[ShapeReader] = []


def register_shape_reader(reader: ShapeReader) -> None:
    """Add a function that returns the full shape of a parameter that its engine has partitioned,
    and None for any other tensor."""
    if reader not in _readers:
        _readers.append(reader)


def full_shape(parameter: Tensor) -> tuple[int, ...]:
    """Return the shape of the full tensor, also of a parameter that is partitioned and empty."""
    for reader in _readers:
        if (shape := reader(parameter)) is not None:
            return tuple(shape)
    return tuple(parameter.shape)


def num_dimensions(parameter: nn.Parameter) -> int:
    """Return the number of dimensions of a parameter, also of one that is partitioned."""
    return len(full_shape(parameter))

"""Stratified subsamples of the training rows, and validation rows: a pure function of the seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dtl.data.batching import epoch_rng

if TYPE_CHECKING:
    from dtl.config.schema import Subsample

# Independent of the subsample's seed, so that the validation rows do not change with it.
VALIDATION_SEED = 20_000_023
MAX_VALIDATION_ROWS = 500


@dataclass(frozen=True)
class SubsampledRows:
    """The indices of the training and validation rows. `largest_class`: the rows of the largest
    class if it has fewer than requested; None: enough."""

    training_rows: frozenset[int]
    validation_rows: frozenset[int]
    largest_class: int | None


def draw_subsample(classes: Mapping[str, Sequence[int]], options: Subsample) -> SubsampledRows:
    """Draw a subsample from the row indices of each class; a smaller class gives all its rows.

    The validation rows have the proportions of the classes, with at least one row of each class
    that has another row to train on.
    """
    total = sum(map(len, classes.values()))
    fraction = min(options.validation_fraction, MAX_VALIDATION_ROWS / total)
    training_rows: list[int] = []
    validation_rows: list[int] = []
    largest = 0
    for class_index, name in enumerate(sorted(classes)):
        rows = _shuffle(classes[name], seed=VALIDATION_SEED, class_index=class_index)
        count = min(max(1, round(len(rows) * fraction)), len(rows) - 1) if fraction else 0
        validation_rows += rows[:count]
        remaining = _shuffle(sorted(rows[count:]), seed=options.seed, class_index=class_index)
        training_rows += remaining[: options.size]
        largest = max(largest, len(remaining))
    too_few = largest if options.size is not None and options.size > largest else None
    return SubsampledRows(frozenset(training_rows), frozenset(validation_rows), too_few)


def _shuffle(rows: Sequence[int], *, seed: int, class_index: int) -> list[int]:
    order = epoch_rng(seed=seed, epoch=class_index).permutation(len(rows))
    return [rows[index] for index in order.tolist()]

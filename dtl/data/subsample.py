"""Which few rows are learnt from, and which are kept apart: a pure function of classes and seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dtl.data.order import draws

if TYPE_CHECKING:
    from dtl.config.schema import Subsample

APART_SEED = 20_000_023  # so that the seed of a draw does not change who is kept apart
MOST_APART = 500  # rows


@dataclass(frozen=True)
class Drawn:
    """Numbers of rows. `short`: how many labels the largest class has, where that is fewer than
    were asked for; None: enough."""

    learnt: frozenset[int]
    apart: frozenset[int]
    short: int | None


def drawn(classes: Mapping[str, Sequence[int]], draw: Subsample) -> Drawn:
    """Of the row numbers of each class; a class with fewer labels than asked for gives all.

    What is kept apart has the classes in their own proportions, a row of each at least where one
    is left to learn from.
    """
    total = sum(map(len, classes.values()))
    share = min(draw.validation_fraction, MOST_APART / total)
    learnt: list[int] = []
    apart: list[int] = []
    largest = 0
    for place, name in enumerate(sorted(classes)):
        numbers = _shuffled(classes[name], seed=APART_SEED, place=place)
        kept = min(max(1, round(len(numbers) * share)), len(numbers) - 1) if share else 0
        apart += numbers[:kept]
        left = _shuffled(sorted(numbers[kept:]), seed=draw.seed, place=place)
        learnt += left[: draw.size]
        largest = max(largest, len(left))
    short = largest if draw.size is not None and draw.size > largest else None
    return Drawn(frozenset(learnt), frozenset(apart), short)


def _shuffled(numbers: Sequence[int], *, seed: int, place: int) -> list[int]:
    order = draws(seed=seed, epoch=place).permutation(len(numbers))
    return [numbers[at] for at in order.tolist()]

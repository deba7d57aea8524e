"""The name of a metric and its direction, and the record of one example."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

EvalRecord = dict[str, Any]  # what scoring needs of one held-out example, as JSON


@dataclass(frozen=True)
class Metric:
    """The name of a score, and its direction."""

    name: str
    higher_is_better: bool = True

    @property
    def better(self) -> str:
        """The word for better values: higher or lower."""
        return "higher" if self.higher_is_better else "lower"

    @property
    def sign(self) -> int:
        """1 where higher is better, else -1: times a value, it is a number to maximize."""
        return 1 if self.higher_is_better else -1

    def to_maximize(self, scores: Mapping[str, float]) -> float:
        """Return this metric's value in `scores` as a number of which higher is better."""
        return self.sign * scores[self.name]

    def worst(self, values: Iterable[float]) -> float:
        """Return the worst of some values."""
        return min(values) if self.higher_is_better else max(values)

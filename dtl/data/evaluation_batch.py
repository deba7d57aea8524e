"""The size of a batch of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EvaluationBatchSize:
    """The most that a batch of an evaluation holds on a rank.

    `padded_size`: examples times the padded length of the longest; None: no limit. A batch has at
    least one example.
    """

    examples: int
    padded_size: int | None = None

    def limit_to(self, width: int) -> int:
        """Return the most examples of a batch whose longest example has this padded length."""
        if self.padded_size is None:
            return self.examples
        return max(1, min(self.examples, self.padded_size // width))

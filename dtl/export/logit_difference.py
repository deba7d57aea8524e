"""The difference between the logits of an exported model and those of the trained one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# By the format of the stored weights: the largest allowed difference between two logits, as a share
# of the largest logit. 4-bit weights differ by 0.04 with dtl's trained base, and by 0.7 with a tiny
# base whose logits are near zero.
TOLERANCE = {"fp32": 1e-4, "fp16": 0.02, "bf16": 0.1, "int8": 0.25, "nf4": 1.0}


@dataclass(frozen=True)
class LogitDifference:
    """The difference between two lists of logits.

    `max_difference`: the largest between two logits that should be equal. `max_logit`: the largest
    logit of the trained model. `argmax_agreement`: share of predictions with the same argmax.
    `compared_rows`: a description of the rows. `tolerance`: the largest allowed difference, as a
    share of `max_logit`.
    """

    max_difference: float
    max_logit: float
    argmax_agreement: float
    compared_rows: str
    tolerance: float

    @property
    def is_within_tolerance(self) -> bool:
        """Whether the difference is small enough; False for NaN."""
        return self.max_difference <= self.tolerance * self.max_logit

    def __str__(self) -> str:
        share = self.max_difference / self.max_logit if self.max_logit else self.max_difference
        return (
            f"largest logit difference {self.max_difference:.2g}, {share:.2g} of the largest logit "
            f"(tolerance {self.tolerance:g}), same argmax in {self.argmax_agreement:.2%} of the "
            f"predictions, on {self.compared_rows}"
        )


def compare_logits(
    expected: list[Tensor], actual: list[Tensor], *, compared_rows: str, tolerance: float
) -> LogitDifference:
    """Return the difference between two lists of logits, one tensor (..., classes) a row.

    Infinite where the shapes differ.
    """
    import torch

    shapes = [[tuple(tensor.shape) for tensor in logits] for logits in (expected, actual)]
    if shapes[0] != shapes[1]:
        return LogitDifference(float("inf"), 1.0, 0.0, compared_rows, tolerance)
    max_difference, max_logit = torch.zeros(()), torch.zeros(())
    agreeing, predictions = 0, 0
    for expected_row, actual_row in zip(expected, actual, strict=True):
        # Two equal infinities have no difference; torch.maximum propagates NaN.
        equal = expected_row == actual_row
        difference = torch.where(equal, 0, (expected_row - actual_row).abs())
        max_difference = torch.maximum(max_difference, difference.max())
        max_logit = torch.maximum(max_logit, expected_row[expected_row.isfinite()].abs().max())
        agrees = expected_row.argmax(-1) == actual_row.argmax(-1)
        agreeing, predictions = agreeing + int(agrees.sum()), predictions + agrees.numel()
    return LogitDifference(
        float(max_difference),
        float(max_logit),
        agreeing / predictions,
        compared_rows,
        tolerance,
    )

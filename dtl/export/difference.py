"""How far the answers of a saved model are from those of the trained one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# By the format of the saved weights: what a logit may be off, as a share of the largest one. Four
# bits alone take 0.04 from dtl's trained base, and 0.7 from a tiny one whose logits are near zero.
TOLERANCE = {"fp32": 1e-4, "fp16": 0.02, "bf16": 0.1, "int8": 0.25, "nf4": 1.0}


@dataclass(frozen=True)
class LogitDifference:
    """`largest`: of any two logits that should be equal; `scale`: the largest logit of the trained
    model; `same`: the share of answers whose likeliest class is the same; `rows`: how many were
    asked, and which; `allowed`: the share of `scale` that `largest` may have."""

    max_difference: float
    max_logit: float
    argmax_agreement: float
    compared_rows: str
    tolerance: float

    @property
    def is_within_tolerance(self) -> bool:
        return self.max_difference <= self.tolerance * self.max_logit  # false for NaN

    def __str__(self) -> str:
        share = self.max_difference / self.max_logit if self.max_logit else self.max_difference
        return (
            f"largest difference of a logit {self.max_difference:.2g}, {share:.2g} of the largest logit "
            f"({self.tolerance:g} allowed), the likeliest class the same in {self.argmax_agreement:.2%} of the "
            f"answers, on {self.compared_rows}"
        )


def compare_logits(
    trained: list[Tensor], saved: list[Tensor], *, rows: str, allowed: float
) -> LogitDifference:
    """Of the logits of two models, row by row; other shapes are infinitely far."""
    import torch

    shapes = [[tuple(one.shape) for one in logits] for logits in (trained, saved)]
    if shapes[0] != shapes[1]:
        return LogitDifference(float("inf"), 1.0, 0.0, rows, allowed)
    largest, scale, same, answers = torch.zeros(()), torch.zeros(()), 0, 0
    for expected, found in zip(trained, saved, strict=True):
        apart = torch.where(expected == found, 0, (expected - found).abs())
        largest = torch.maximum(largest, apart.max())  # keeps NaN
        scale = torch.maximum(scale, expected[expected.isfinite()].abs().max())
        agrees = expected.argmax(-1) == found.argmax(-1)
        same, answers = same + int(agrees.sum()), answers + agrees.numel()
    return LogitDifference(float(largest), float(scale), same / answers, rows, allowed)

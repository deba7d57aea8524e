"""Focal loss (Lin et al. 2017, arXiv:1708.02002)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

MIN_MISS = 1e-12  # of 1 - p, whose power has an infinite slope at 0 if gamma is below 1


def focal_losses(losses: Tensor, *, gamma: float) -> Tensor:
    """Return cross-entropies times (1 - p) ** gamma, any shape: targets that are predicted well
    count less.

    `losses`: -log(p) of the probability p of each target. `gamma` 0: they are unchanged.
    """
    if gamma == 0:
        return losses
    return (-(-losses).expm1()).clamp(min=MIN_MISS) ** gamma * losses

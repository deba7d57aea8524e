"""Squared error of predicted numbers."""

# B batch, K numbers

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def squared_errors(predicted_BK: Tensor, numbers_BK: Tensor) -> Tensor:
    """Return the squared error of each number (B, K), in the dtype of the prediction."""
    return (predicted_BK - numbers_BK) ** 2

"""No transfer: the architecture with random weights; the yardstick, and how a base is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dtl.config.record import Record
from dtl.strategies.base import Strategy

if TYPE_CHECKING:
    from torch import nn


class Options(Record):
    """`strategy: scratch` has no options."""


class Plugin(Strategy):
    """Random weights, drawn from train.seed; everything moves."""

    learning_rate = 1e-3
    starts_from = "random"

    def apply(self, model: nn.Module, *, new: frozenset[str]) -> nn.Module:
        return model.requires_grad_(True)

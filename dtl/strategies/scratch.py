"""Training from scratch: random weights, no transfer; the baseline, and how a base is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dtl.config.schema.base import Record
from dtl.strategies.base import Strategy

if TYPE_CHECKING:
    from torch import nn


class Options(Record):
    """`strategy: scratch` has no options."""


class Plugin(Strategy):
    """Trains all parameters, from random values that are drawn with `train.seed`."""

    learning_rate = 1e-3
    starts_from = "random"

    def apply(self, model: nn.Module, *, new_parameters: frozenset[str]) -> nn.Module:
        return model.requires_grad_(True)

"""Full fine-tuning: every parameter is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dtl.config.schema.base import Record
from dtl.strategies.base import Strategy

if TYPE_CHECKING:
    from torch import nn


class Options(Record):
    """`strategy: full` has no options."""


class Plugin(Strategy):
    """Trains all parameters."""

    learning_rate = 2e-5
    scales_learning_rate = True

    def apply(self, model: nn.Module, *, new_parameters: frozenset[str]) -> nn.Module:
        return model.requires_grad_(True)

"""Full fine-tuning: every parameter learns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dtl.config.record import Record
from dtl.strategies.base import Strategy

if TYPE_CHECKING:
    from torch import nn


class Options(Record):
    """`strategy: full` has no options yet."""


class Plugin(Strategy):
    """Everything moves."""

    learning_rate = 2e-5

    def apply(self, model: nn.Module, *, new: frozenset[str]) -> nn.Module:
        return model.requires_grad_(True)

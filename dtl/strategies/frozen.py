"""Feature extraction: the base is frozen, in evaluation mode; only the head learns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dtl.config.record import Record
from dtl.errors import DtlError
from dtl.models.anatomy import head_modules, head_parameters
from dtl.strategies import Strategy, let_learn

if TYPE_CHECKING:
    from torch import nn


class Options(Record):
    """`strategy: frozen` has no options yet."""


class Plugin(Strategy):
    """The head moves, and whatever else the base did not bring."""

    learning_rate = 1e-3

    def apply(self, model: nn.Module, *, new: frozenset[str]) -> nn.Module:
        learning = head_parameters(model) | new
        if not learning:
            raise DtlError.of(
                "strategy: frozen",
                f"{type(model).__name__} has no head of its own to learn (its output is tied to "
                "the input embeddings)",
                "take strategy lora or full, or a model whose head is not tied",
            )
        return let_learn(model, learning)

    def training_mode(self, model: nn.Module) -> None:
        """No dropout in the frozen part: its features are the same in every epoch."""
        model.eval()
        for module in head_modules(model):
            module.train()

"""Feature extraction: the base is frozen, in evaluation mode; only the head is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from dtl.config.schema.base import Record
from dtl.core.errors import DtlError
from dtl.models.structure.head import head_modules, head_parameters
from dtl.strategies.base import Strategy, set_trainable

if TYPE_CHECKING:
    from torch import nn


class Options(Record):
    """Options of `strategy: frozen`."""

    cache_features: bool | None = Field(
        None,
        description="Compute the base's output for each example once, cache it on disk for all "
        "runs and train the head on it; default: on if that gives the same result and saves time.",
    )


class Plugin(Strategy):
    """Trains the head and all other new parameters."""

    learning_rate = 1e-3
    cache_features = None

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.cache_features = options.cache_features

    def apply(self, model: nn.Module, *, new_parameters: frozenset[str]) -> nn.Module:
        trainable = head_parameters(model) | new_parameters
        if not trainable:
            raise DtlError.of(
                "strategy: frozen",
                f"{type(model).__name__} has no head of its own to train (its output layer is tied "
                "to the input embeddings)",
                "take strategy lora or full, or a model whose head is not tied",
            )
        return set_trainable(model, trainable)

    def set_training_mode(self, model: nn.Module) -> None:
        """Set the base to evaluation mode: without dropout its features do not change."""
        model.eval()
        for module in head_modules(model):
            module.train()

"""Feature extraction: the base is frozen, in evaluation mode; only the head learns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from dtl.config.record import Record
from dtl.core.errors import DtlError
from dtl.models.anatomy import head_modules, head_parameters
from dtl.strategies.base import Strategy, set_trainable

if TYPE_CHECKING:
    from torch import nn


class Options(Record):
    """Options of `strategy: frozen`."""

    cache_features: bool | None = Field(
        None,
        description="Compute what the base makes of each example once, keep it on disk for all "
        "runs and learn the head from it; left out: where that gives the same and saves time.",
    )


class Plugin(Strategy):
    """The head moves, and whatever else the base did not bring."""

    learning_rate = 1e-3
    caches_features = None

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.caches_features = options.cache_features

    def apply(self, model: nn.Module, *, new: frozenset[str]) -> nn.Module:
        learning = head_parameters(model) | new
        if not learning:
            raise DtlError.of(
                "strategy: frozen",
                f"{type(model).__name__} has no head of its own to learn (its output is tied to "
                "the input embeddings)",
                "take strategy lora or full, or a model whose head is not tied",
            )
        return set_trainable(model, learning)

    def training_mode(self, model: nn.Module) -> None:
        """No dropout in the frozen part: its features are the same in every epoch."""
        model.eval()
        for module in head_modules(model):
            module.train()

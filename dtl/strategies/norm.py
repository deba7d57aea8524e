"""Norm tuning: the normalization layers and the head are trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from dtl.config.schema.base import Record
from dtl.core.errors import DtlError
from dtl.models.structure.head import head_parameters
from dtl.models.structure.module_kinds import norm_parameters
from dtl.strategies.base import Strategy, set_trainable

if TYPE_CHECKING:
    from torch import nn


class Options(Record):
    """Options of `strategy: norm` (Frankle et al. 2020, arXiv:2003.00152, for BatchNorm; Zhao et
    al. 2023, arXiv:2312.11420, for LayerNorm)."""

    head: bool = Field(
        True,
        description="Train a pretrained head as well, unless it is tied to the input embeddings. A "
        "new head is always trained.",
    )


class Plugin(Strategy):
    """Trains weights and biases of all norms, and the head; running statistics are frozen."""

    learning_rate = 1e-3
    options: Options

    def apply(self, model: nn.Module, *, new_parameters: frozenset[str]) -> nn.Module:
        heads, norms = head_parameters(model), norm_parameters(model)
        if not norms - heads - new_parameters:
            raise DtlError.of(
                "strategy: norm",
                f"the base of {type(model).__name__} has no normalization layers with parameters",
                "take strategy bitfit or lora, or a model with such layers",
            )
        return set_trainable(
            model, norms | new_parameters | (heads if self.options.head else frozenset())
        )

"""Norm tuning: the normalisation layers learn, and the head."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from dtl.config.record import Record
from dtl.core.errors import DtlError
from dtl.models.anatomy import head_parameters, norm_parameters
from dtl.strategies.base import Strategy, set_trainable

if TYPE_CHECKING:
    from torch import nn


class Options(Record):
    """Options of `strategy: norm` (Frankle et al. 2020, arXiv:2003.00152, for BatchNorm; Zhao et
    al. 2023, arXiv:2312.11420, for LayerNorm)."""

    head: bool = Field(
        True,
        description="Let a head that the base brought learn too, unless it is tied to the input "
        "embeddings; a new one always does.",
    )


class Plugin(Strategy):
    """Scales and shifts of all norms move, and the head; running statistics stay the base's."""

    learning_rate = 1e-3
    options: Options

    def apply(self, model: nn.Module, *, new: frozenset[str]) -> nn.Module:
        heads, norms = head_parameters(model), norm_parameters(model)
        if not norms - heads - new:
            raise DtlError.of(
                "strategy: norm",
                f"the base of {type(model).__name__} has no normalisation layers that learn",
                "take strategy bitfit or lora, or a model with such layers",
            )
        return set_trainable(model, norms | new | (heads if self.options.head else frozenset()))

"""VeRA: trained vectors scale random matrices, which all layers share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from dtl.strategies.base import Adapter, ContinueFrom, LayersToTransform

if TYPE_CHECKING:
    from torch import nn


class Options(LayersToTransform, ContinueFrom):
    """Options of `strategy: vera` (Kopiczko et al. 2023, arXiv:2310.11454)."""

    rank: int = Field(256, ge=1, description="Rank of the random matrices.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the input of the adapter.")
    projection_prng_key: int = Field(0, ge=0, description="Seed of the random matrices.")
    d_initial: float = Field(0.1, gt=0, description="Initial scale of each rank.")


class Plugin(Adapter):
    """Trains the vectors and a new head."""

    learning_rate = 4e-3  # as in the paper
    method = "vera"
    options: Options

    def peft_config_kwargs(self, model: nn.Module) -> dict[str, Any]:
        return {
            "r": self.options.rank,
            "vera_dropout": self.options.dropout,
            "projection_prng_key": self.options.projection_prng_key,
            "d_initial": self.options.d_initial,
        }

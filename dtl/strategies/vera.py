"""VeRA: vectors that scale random matrices, which all layers share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from dtl.strategies.base import Adapter, GoingOn, OfBlocks

if TYPE_CHECKING:
    from torch import nn


class Options(OfBlocks, GoingOn):
    """Options of `strategy: vera` (Kopiczko et al. 2023, arXiv:2310.11454)."""

    rank: int = Field(256, ge=1, description="Rank of the random matrices.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the adapter.")
    seed: int = Field(0, ge=0, description="What the random matrices are drawn from.")
    start: float = Field(0.1, gt=0, description="What the scale of each rank begins with.")


class Plugin(Adapter):
    """The vectors move, and a new head."""

    learning_rate = 4e-3  # as in the paper
    method = "vera"
    options: Options

    def settings(self, model: nn.Module) -> dict[str, Any]:
        return {
            "r": self.options.rank,
            "vera_dropout": self.options.dropout,
            "projection_prng_key": self.options.seed,
            "d_initial": self.options.start,
        }

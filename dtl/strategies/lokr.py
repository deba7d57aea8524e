"""LoKr: the update is a Kronecker product of a small matrix and one of low rank."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from dtl.strategies.base import Adapter, Excluding, GoingOn, OfBlocks

if TYPE_CHECKING:
    from torch import nn


class Options(OfBlocks, Excluding, GoingOn):
    """Options of `strategy: lokr` (KronA, arXiv:2212.10650; LyCORIS, arXiv:2309.14859)."""

    rank: int = Field(8, ge=1, description="Rank of the larger of the two.")
    alpha: float = Field(8.0, gt=0, description="Scale: the update is multiplied by alpha / rank.")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of the layers whose update training leaves out."
    )
    factor: int | None = Field(
        None,
        ge=2,
        description="Size of the small matrix; left out: as near as can be to the root of the "
        "layer's.",
    )


class Plugin(Adapter):
    """The factors move, and a new head."""

    learning_rate = 1e-4  # as in PEFT's comparison of methods
    method = "lokr"
    options: Options

    def settings(self, model: nn.Module) -> dict[str, Any]:
        return {
            "r": self.options.rank,
            "alpha": self.options.alpha,
            "module_dropout": self.options.dropout,
            "decompose_factor": self.options.factor or -1,
        }

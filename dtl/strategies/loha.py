"""LoHa: the update is the product, element by element, of two of low rank."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from dtl.strategies.base import Adapter, Excluding, GoingOn, OfBlocks

if TYPE_CHECKING:
    from torch import nn


class Options(OfBlocks, Excluding, GoingOn):
    """Options of `strategy: loha` (FedPara, arXiv:2108.06098; LyCORIS, arXiv:2309.14859)."""

    rank: int = Field(8, ge=1, description="Rank of each of the two; the update's is its square.")
    alpha: float = Field(8.0, gt=0, description="Scale: the update is multiplied by alpha / rank.")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of the layers whose update training leaves out."
    )


class Plugin(Adapter):
    """The factors move, and a new head."""

    learning_rate = 1e-4  # as in PEFT's comparison of methods
    method = "loha"
    options: Options

    def settings(self, model: nn.Module) -> dict[str, Any]:
        return {
            "r": self.options.rank,
            "alpha": self.options.alpha,
            "module_dropout": self.options.dropout,
        }

"""LoHa: the update is the elementwise (Hadamard) product of two low-rank matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from dtl.strategies.base import Adapter, ContinueFrom, ExcludeModules, LayersToTransform

if TYPE_CHECKING:
    from torch import nn


class Options(LayersToTransform, ExcludeModules, ContinueFrom):
    """Options of `strategy: loha` (FedPara, arXiv:2108.06098; LyCORIS, arXiv:2309.14859)."""

    rank: int = Field(
        8,
        ge=1,
        description="Rank of each of the two matrices; the rank of the update is its square.",
    )
    alpha: float = Field(8.0, gt=0, description="Scale: the update is multiplied by alpha / rank.")
    module_dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of the layers whose update is dropped in training."
    )


class Plugin(Adapter):
    """Trains the factors and a new head."""

    learning_rate = 1e-4  # as in PEFT's comparison of methods
    method = "loha"
    options: Options

    def peft_config_kwargs(self, model: nn.Module) -> dict[str, Any]:
        return {
            "r": self.options.rank,
            "alpha": self.options.alpha,
            "module_dropout": self.options.module_dropout,
        }

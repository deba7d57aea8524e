"""LoKr: the update is the Kronecker product of a small matrix and a low-rank matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from dtl.strategies.base import Adapter, ContinueFrom, ExcludeModules, LayersToTransform

if TYPE_CHECKING:
    from torch import nn


class Options(LayersToTransform, ExcludeModules, ContinueFrom):
    """Options of `strategy: lokr` (KronA, arXiv:2212.10650; LyCORIS, arXiv:2309.14859)."""

    rank: int = Field(8, ge=1, description="Rank of the larger of the two matrices.")
    alpha: float = Field(8.0, gt=0, description="Scale: the update is multiplied by alpha / rank.")
    module_dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of the layers whose update is dropped in training."
    )
    decompose_factor: int | None = Field(
        None,
        ge=2,
        description="Size of the small matrix; default: the divisor nearest to the square root of "
        "the layer's size.",
    )


class Plugin(Adapter):
    """Trains the factors and a new head."""

    learning_rate = 1e-4  # as in PEFT's comparison of methods
    method = "lokr"
    options: Options

    def peft_config_kwargs(self, model: nn.Module) -> dict[str, Any]:
        return {
            "r": self.options.rank,
            "alpha": self.options.alpha,
            "module_dropout": self.options.module_dropout,
            "decompose_factor": self.options.decompose_factor or -1,
        }

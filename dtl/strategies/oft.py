"""OFT: weights are multiplied by trained rotations, which keep the angles between their rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from dtl.strategies.base import Adapter, ContinueFrom, ExcludeModules, LayersToTransform

if TYPE_CHECKING:
    from torch import nn


class Options(LayersToTransform, ExcludeModules, ContinueFrom):
    """Options of `strategy: oft` (Qiu et al. 2023, arXiv:2306.07280; OFTv2, arXiv:2506.19847)."""

    block_size: int = Field(
        32, ge=2, description="Width of a rotation; it must divide the input width of each layer."
    )
    module_dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of the rotations that are dropped in training."
    )
    use_cayley_neumann: bool = Field(
        True,
        description="Approximate the matrix inverse of a rotation by a series of five terms, which "
        "is faster and nearly orthogonal (OFTv2); false: the exact inverse.",
    )


class Plugin(Adapter):
    """Trains the rotations and a new head."""

    learning_rate = 1e-4  # as in PEFT's comparison of methods
    method = "oft"
    options: Options

    def peft_config_kwargs(self, model: nn.Module) -> dict[str, Any]:
        return {
            "r": 0,
            "oft_block_size": self.options.block_size,
            "module_dropout": self.options.module_dropout,
            "use_cayley_neumann": self.options.use_cayley_neumann,
        }

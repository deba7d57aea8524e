"""OFT: weights are turned by learnt rotations, which keep the angles between their rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from dtl.strategies.base import Adapter, Excluding, GoingOn, OfBlocks

if TYPE_CHECKING:
    from torch import nn


class Options(OfBlocks, Excluding, GoingOn):
    """Options of `strategy: oft` (Qiu et al. 2023, arXiv:2306.07280; OFTv2, arXiv:2506.19847)."""

    block: int = Field(
        32, ge=2, description="Width of a rotation; it must divide the input of each layer."
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of the rotations that training leaves out."
    )
    exact: bool = Field(
        False,
        description="Rotations by a matrix inverse, in place of a series of five terms, which is "
        "quicker and nearly orthogonal (OFTv2).",
    )


class Plugin(Adapter):
    """The rotations move, and a new head."""

    learning_rate = 1e-4  # as in PEFT's comparison of methods
    method = "oft"
    options: Options

    def settings(self, model: nn.Module) -> dict[str, Any]:
        return {
            "r": 0,
            "oft_block_size": self.options.block,
            "module_dropout": self.options.dropout,
            "use_cayley_neumann": not self.options.exact,
        }

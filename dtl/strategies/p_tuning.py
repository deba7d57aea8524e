"""P-tuning: virtual tokens before every text, learnt through a small network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from dtl.config.record import Record
from dtl.strategies.base import Adapter

if TYPE_CHECKING:
    from torch import nn


class Options(Record):
    """Options of `strategy: p_tuning` (Liu et al. 2021, arXiv:2103.10385)."""

    tokens: int = Field(20, ge=1, description="How many virtual tokens stand before a text.")
    network: Literal["mlp", "lstm"] = Field(
        "mlp", description="What makes them of what is learnt; it is not exported."
    )
    width: int | None = Field(
        None, ge=1, description="Width of that network; left out: the model's own."
    )


class Plugin(Adapter):
    """The virtual tokens and their network move, and a new head."""

    learning_rate = 1e-3  # as in PEFT's guide
    method = "p_tuning"
    options: Options

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.virtual_tokens = options.tokens

    def settings(self, model: nn.Module) -> dict[str, Any]:
        width = {} if self.options.width is None else {"encoder_hidden_size": self.options.width}
        return {
            "num_virtual_tokens": self.options.tokens,
            "encoder_reparameterization_type": self.options.network.upper(),
            **width,
        }

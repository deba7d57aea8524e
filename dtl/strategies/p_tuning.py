"""P-tuning: virtual tokens before every text are trained through a small network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from dtl.config.schema.base import Record
from dtl.strategies.base import Adapter

if TYPE_CHECKING:
    from torch import nn


class Options(Record):
    """Options of `strategy: p_tuning` (Liu et al. 2021, arXiv:2103.10385)."""

    num_virtual_tokens: int = Field(20, ge=1, description="Number of virtual tokens before a text.")
    encoder_reparameterization_type: Literal["mlp", "lstm"] = Field(
        "mlp", description="Network that computes the virtual tokens; it is not exported."
    )
    encoder_hidden_size: int | None = Field(
        None, ge=1, description="Width of that network; default: the model's hidden size."
    )


class Plugin(Adapter):
    """Trains the virtual tokens, their network and a new head."""

    learning_rate = 1e-3  # as in PEFT's guide
    method = "p_tuning"
    options: Options

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.num_virtual_tokens = options.num_virtual_tokens

    def peft_config_kwargs(self, model: nn.Module) -> dict[str, Any]:
        width = (
            {}
            if self.options.encoder_hidden_size is None
            else {"encoder_hidden_size": self.options.encoder_hidden_size}
        )
        return {
            "num_virtual_tokens": self.options.num_virtual_tokens,
            "encoder_reparameterization_type": self.options.encoder_reparameterization_type.upper(),
            **width,
        }

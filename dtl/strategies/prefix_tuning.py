"""Prefix tuning: every block attends to trained keys and values, before those of the text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from dtl.config.schema.base import Record
from dtl.strategies.base import Adapter

if TYPE_CHECKING:
    from torch import nn


class Options(Record):
    """Options of `strategy: prefix_tuning` (Li and Liang 2021, arXiv:2101.00190)."""

    num_virtual_tokens: int = Field(20, ge=1, description="Number of virtual tokens before a text.")
    prefix_projection: bool = Field(
        False,
        description="Train the virtual tokens through a small network, which is not exported.",
    )


class Plugin(Adapter):
    """Trains keys and values of the virtual tokens, and a new head."""

    learning_rate = 1e-3  # as in PEFT's comparison of methods
    method = "prefix_tuning"
    options: Options

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.num_virtual_tokens = options.num_virtual_tokens

    def peft_config_kwargs(self, model: nn.Module) -> dict[str, Any]:
        return {
            "num_virtual_tokens": self.options.num_virtual_tokens,
            "prefix_projection": self.options.prefix_projection,
        }

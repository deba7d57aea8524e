"""Prefix tuning: keys and values are learnt, which every block sees before those of the text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from dtl.config.record import Record
from dtl.strategies.base import Adapter

if TYPE_CHECKING:
    from torch import nn


class Options(Record):
    """Options of `strategy: prefix_tuning` (Li and Liang 2021, arXiv:2101.00190)."""

    tokens: int = Field(20, ge=1, description="How many virtual tokens stand before a text.")
    network: bool = Field(
        False, description="Learn them through a small network, which is not exported."
    )


class Plugin(Adapter):
    """Keys and values of the virtual tokens move, and a new head."""

    learning_rate = 1e-3  # as in PEFT's comparison of methods
    method = "prefix_tuning"
    options: Options

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.virtual_tokens = options.tokens

    def settings(self, model: nn.Module) -> dict[str, Any]:
        return {
            "num_virtual_tokens": self.options.tokens,
            "prefix_projection": self.options.network,
        }

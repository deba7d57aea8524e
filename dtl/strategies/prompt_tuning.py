"""Prompt tuning: tokens of no word are learnt, which stand before every text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from dtl.config.record import Record
from dtl.models.peft.adapters import on_meta_device
from dtl.strategies.base import Adapter

if TYPE_CHECKING:
    from torch import nn


class Options(Record):
    """Options of `strategy: prompt_tuning` (Lester et al. 2021, arXiv:2104.08691)."""

    tokens: int = Field(20, ge=1, description="How many virtual tokens stand before a text.")
    init: Literal["vocabulary", "random"] = Field(
        "vocabulary",
        description="How they begin: as tokens of the vocabulary, drawn by lot, or at random.",
    )


class Plugin(Adapter):
    """The virtual tokens move, and a new head."""

    learning_rate = 1e-3  # as in PEFT's comparison of methods
    method = "prompt_tuning"
    options: Options

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.virtual_tokens = options.tokens

    def settings(self, model: nn.Module) -> dict[str, Any]:
        drawn = self.options.init == "random" or on_meta_device(model)
        return {
            "num_virtual_tokens": self.options.tokens,
            "prompt_tuning_init": "RANDOM" if drawn else "SAMPLE_VOCAB",
        }

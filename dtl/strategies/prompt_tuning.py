"""Prompt tuning: the embeddings of virtual tokens before every text are trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from dtl.config.schema.base import Record
from dtl.models.peft.base import is_on_meta_device
from dtl.strategies.base import Adapter

if TYPE_CHECKING:
    from torch import nn


class Options(Record):
    """Options of `strategy: prompt_tuning` (Lester et al. 2021, arXiv:2104.08691)."""

    num_virtual_tokens: int = Field(20, ge=1, description="Number of virtual tokens before a text.")
    init: Literal["sample_vocab", "random"] = Field(
        "sample_vocab",
        description="Initialization: the embeddings of random tokens of the vocabulary, or random "
        "numbers.",
    )


class Plugin(Adapter):
    """Trains the virtual tokens and a new head."""

    learning_rate = 1e-3  # as in PEFT's comparison of methods
    method = "prompt_tuning"
    options: Options

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.num_virtual_tokens = options.num_virtual_tokens

    def peft_config_kwargs(self, model: nn.Module) -> dict[str, Any]:
        is_random = self.options.init == "random" or is_on_meta_device(model)
        return {
            "num_virtual_tokens": self.options.num_virtual_tokens,
            "prompt_tuning_init": "RANDOM" if is_random else "SAMPLE_VOCAB",
        }

"""BitFit: the biases and the head are trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from dtl.config.schema.base import Record
from dtl.core.errors import DtlError
from dtl.models.structure.head import head_parameters
from dtl.strategies.base import Strategy, set_trainable

if TYPE_CHECKING:
    from torch import nn


class Options(Record):
    """Options of `strategy: bitfit` (Ben Zaken et al. 2021, arXiv:2106.10199)."""

    head: bool = Field(
        True,
        description="Train a pretrained head as well, unless it is tied to the input embeddings. A "
        "new head is always trained.",
    )


class Plugin(Strategy):
    """Trains every bias, also those of norms, and the head."""

    learning_rate = 1e-3
    options: Options

    def apply(self, model: nn.Module, *, new_parameters: frozenset[str]) -> nn.Module:
        heads = head_parameters(model)
        # Not only `bias`: attention may have `in_proj_bias` or `q_bias`.
        biases = {name for name, _ in model.named_parameters() if name.endswith("bias")}
        if not biases - heads - new_parameters:
            raise DtlError.of(
                "strategy: bitfit",
                f"the base of {type(model).__name__} has no biases",
                "take strategy norm or lora, or a model with biases",
            )
        return set_trainable(
            model, biases | new_parameters | (heads if self.options.head else frozenset())
        )

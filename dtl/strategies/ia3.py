"""IA3: trained vectors scale the outputs of layers; the method with the fewest parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from dtl.strategies.base import Adapter, ContinueFrom, ExcludeModules

if TYPE_CHECKING:
    from torch import nn


class Options(ExcludeModules, ContinueFrom):
    """Options of `strategy: ia3` (Liu et al. 2022, arXiv:2205.05638)."""

    target_modules: str | tuple[str, ...] = Field(
        "default",
        description="Layers that are scaled: default (PEFT's for this model type: keys, values and "
        "the last layer of each feed-forward block), all-linear, a list of name endings, or a "
        "regular expression over full module names.",
    )
    feedforward_modules: tuple[str, ...] = Field(
        (),
        description="Layers of target_modules whose input is scaled, not their output; with "
        "target_modules: default, PEFT's.",
    )


class Plugin(Adapter):
    """Trains the vectors and a new head."""

    learning_rate = 3e-3  # as in the paper
    method = "ia3"
    options: Options

    def peft_config_kwargs(self, model: nn.Module) -> dict[str, Any]:
        if self.options.target_modules == "default":
            return {"target_modules": None, "feedforward_modules": None}
        return {"feedforward_modules": list(self.options.feedforward_modules)}

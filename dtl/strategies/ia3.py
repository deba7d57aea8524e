"""IA3: what layers put out is scaled by learnt vectors; the fewest parameters of all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from dtl.strategies.base import Adapter, Excluding, GoingOn

if TYPE_CHECKING:
    from torch import nn


class Options(Excluding, GoingOn):
    """Options of `strategy: ia3` (Liu et al. 2022, arXiv:2205.05638)."""

    target: str | tuple[str, ...] = Field(
        "usual",
        description="Which layers are scaled: usual (keys, values and the last of each "
        "feed-forward part, as PEFT knows them for this kind of model), all-linear, a list of name "
        "endings, or a regular expression over whole module names.",
    )
    scale_input: tuple[str, ...] = Field(
        (),
        description="Those of the target whose input is scaled, not their output (PEFT's "
        "feedforward_modules); usual names its own.",
    )


class Plugin(Adapter):
    """The vectors move, and a new head."""

    learning_rate = 3e-3  # as in the paper
    method = "ia3"
    options: Options

    def settings(self, model: nn.Module) -> dict[str, Any]:
        if self.options.target == "usual":
            return {"target_modules": None, "feedforward_modules": None}
        return {"feedforward_modules": list(self.options.scale_input)}

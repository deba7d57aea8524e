"""Direct preference optimization: the chosen of two responses becomes more likely."""

# B pairs, P the two responses of a pair (chosen, rejected)

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from dtl.losses.preference import sigmoid_losses
from dtl.tasks._preference import PairLosses, PairOptions, PairTask, compute_log_ratios

if TYPE_CHECKING:
    from torch import Tensor, nn


class Options(PairOptions):
    """Options of `task: dpo` (Rafailov et al. 2023, arXiv:2305.18290)."""

    beta: float = Field(
        0.1,
        gt=0,
        description="Strength of the penalty on the distance to the base; higher stays closer.",
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="Share of the pairs whose order is assumed to be wrong.",
    )


class Plugin(PairTask):
    """-log sigmoid(beta (log-ratio of chosen - log-ratio of rejected)); a pair is one target.

    The log-ratio is that of the model to the base, which is the model with its adapter disabled.
    """

    compares_with_base = True
    options: Options

    def pair_losses(self, model: nn.Module, batch: dict[str, Tensor]) -> PairLosses:
        """The reward is beta times the log-ratio."""
        rewards_BP = self.options.beta * compute_log_ratios(model, batch)
        margins_B = rewards_BP[:, 0] - rewards_BP[:, 1]
        losses_B = sigmoid_losses(margins_B, label_smoothing=self.options.label_smoothing)
        return PairLosses(losses_B, rewards_BP)

"""Simple preference optimization: no reference; the reward is the mean log-likelihood."""

# B pairs, P the two responses of a pair (chosen, rejected)

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from dtl.losses.preference import sigmoid_losses
from dtl.tasks._preference import PairLosses, PairOptions, PairTask, compute_likelihoods

if TYPE_CHECKING:
    from torch import Tensor, nn


class Options(PairOptions):
    """Options of `task: simpo` (Meng et al. 2024, arXiv:2405.14734)."""

    beta: float = Field(
        2.0, gt=0, description="Factor of the mean log-likelihood of a token in the reward."
    )
    gamma: float = Field(
        0.5, ge=0, description="Margin by which the reward of the chosen response is to be higher."
    )
    sft_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of the negative log-likelihood of a token of the chosen response "
        "(CPO-SimPO); 0 in the paper.",
    )


class Plugin(PairTask):
    """-log sigmoid(beta (mean log p of chosen - mean log p of rejected) - gamma).

    A pair is one target.
    """

    options: Options

    def pair_losses(self, model: nn.Module, batch: dict[str, Tensor]) -> PairLosses:
        """The reward is beta times the mean log-likelihood of a token."""
        means_BP = compute_likelihoods(model, batch).means_BP
        rewards_BP, nll_B = self.options.beta * means_BP, -means_BP[:, 0]
        preference_B = sigmoid_losses(
            rewards_BP[:, 0] - rewards_BP[:, 1] - self.options.gamma, label_smoothing=0.0
        )
        return PairLosses(preference_B + self.options.sft_weight * nll_B, rewards_BP, nll_B)

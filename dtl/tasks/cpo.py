"""Contrastive preference optimization: DPO without a reference, beside supervised fine-tuning."""

# B pairs, P the two responses of a pair (chosen, rejected)

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from dtl.losses.preference import sigmoid_losses
from dtl.tasks._preference import PairLosses, PairOptions, PairTask, compute_likelihoods

if TYPE_CHECKING:
    from torch import Tensor, nn


class Options(PairOptions):
    """Options of `task: cpo` (Xu et al. 2024, arXiv:2401.08417)."""

    beta: float = Field(
        0.1, gt=0, description="Factor of the log-likelihood of a response in its reward."
    )
    sft_weight: float = Field(
        1.0,
        ge=0,
        description="Weight of the negative log-likelihood of a token of the chosen response.",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="Share of the pairs whose order is assumed to be wrong."
    )


class Plugin(PairTask):
    """-log sigmoid(beta (log p of chosen - log p of rejected)) + sft_weight x NLL of chosen.

    A pair is one target. The NLL is the mean over the tokens of a response, as in the authors'
    code.
    """

    options: Options

    def pair_losses(self, model: nn.Module, batch: dict[str, Tensor]) -> PairLosses:
        """The reward is beta times the log-likelihood."""
        likelihoods = compute_likelihoods(model, batch)
        rewards_BP, nll_B = self.options.beta * likelihoods.sums_BP, -likelihoods.means_BP[:, 0]
        preference_B = sigmoid_losses(
            rewards_BP[:, 0] - rewards_BP[:, 1], label_smoothing=self.options.label_smoothing
        )
        return PairLosses(preference_B + self.options.sft_weight * nll_B, rewards_BP, nll_B)

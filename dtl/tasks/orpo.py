"""Odds ratio preference optimization: supervised fine-tuning and preferences in one loss."""

# B pairs, P the two responses of a pair (chosen, rejected)

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from dtl.losses.preference import odds_ratio_losses
from dtl.tasks._preference import PairLosses, PairOptions, PairTask, compute_likelihoods

if TYPE_CHECKING:
    from torch import Tensor, nn


class Options(PairOptions):
    """Options of `task: orpo` (Hong et al. 2024, arXiv:2403.07691)."""

    beta: float = Field(
        0.1, gt=0, description="lambda of the paper: weight of the loss of the odds ratio."
    )


class Plugin(PairTask):
    """NLL of chosen - beta log sigmoid(log(odds of chosen / odds of rejected)).

    A pair is one target. The odds are those of the mean log-likelihood of a token; the NLL is the
    mean over the tokens of the chosen response.
    """

    options: Options

    def pair_losses(self, model: nn.Module, batch: dict[str, Tensor]) -> PairLosses:
        """The reward is beta times the mean log-likelihood of a token."""
        means_BP = compute_likelihoods(model, batch).means_BP
        nll_B, odds_B = -means_BP[:, 0], odds_ratio_losses(means_BP)
        return PairLosses(nll_B + self.options.beta * odds_B, self.options.beta * means_BP, nll_B)

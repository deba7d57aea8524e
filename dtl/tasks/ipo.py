"""Identity preference optimization: DPO with a margin that has a target, against overfitting."""

# B pairs, P the two responses of a pair (chosen, rejected)

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from dtl.losses.preference import ipo_losses, response_lengths
from dtl.tasks._preference import PairLosses, PairOptions, PairTask, compute_log_ratios

if TYPE_CHECKING:
    from torch import Tensor, nn


class Options(PairOptions):
    """Options of `task: ipo` (Azar et al. 2023, arXiv:2310.12036)."""

    beta: float = Field(
        0.1,
        gt=0,
        description="tau of the paper: the log-ratios of the two responses are to differ by "
        "1 / (2 beta); higher stays closer to the base.",
    )
    length_normalized: bool = Field(
        True,
        description="Divide the log-ratio of a response by its number of tokens, as TRL does; "
        "false: the paper's formula, of full responses.",
    )


class Plugin(PairTask):
    """(log-ratio of chosen - log-ratio of rejected - 1 / (2 beta))^2; a pair is one target.

    The log-ratio is that of the model to the base, which is the model with its adapter disabled.
    """

    compares_with_base = True
    options: Options

    def pair_losses(self, model: nn.Module, batch: dict[str, Tensor]) -> PairLosses:
        """The reward is beta times the log-ratio."""
        log_ratios_BP = compute_log_ratios(model, batch)
        if self.options.length_normalized:
            log_ratios_BP = log_ratios_BP / response_lengths(batch["labels"][..., 1:])
        losses_B = ipo_losses(log_ratios_BP, tau=self.options.beta)
        return PairLosses(losses_B, self.options.beta * log_ratios_BP)

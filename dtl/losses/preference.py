"""Losses of preferences: of pairs of responses, of single ones, and of reward models."""

# B pairs or responses, P the two responses of a pair (chosen, rejected), N = B * P, T tokens,
# V vocabulary

from __future__ import annotations

from typing import TYPE_CHECKING

from dtl.losses.cross_entropy import IGNORE_INDEX

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_LOG_PROBABILITY = -1e-7  # the odds of a probability of 1 are infinite


def response_lengths(labels_BPT: Tensor) -> Tensor:
    """Return the number of tokens of each response (B, P), int64."""
    return (labels_BPT != IGNORE_INDEX).sum(-1)


def sigmoid_losses(margins_B: Tensor, *, label_smoothing: float) -> Tensor:
    """Return -log sigmoid(margin) of each pair (B,), in nats.

    It is the loss of DPO (Rafailov et al. 2023, arXiv:2305.18290), CPO (Xu et al. 2024,
    arXiv:2401.08417) and SimPO (Meng et al. 2024, arXiv:2405.14734). `margins_B`: the reward of the
    chosen response minus that of the rejected one. `label_smoothing`: the share of the pairs whose
    order is assumed to be wrong.
    """
    from torch.nn.functional import logsigmoid

    return -(1 - label_smoothing) * logsigmoid(margins_B) - label_smoothing * logsigmoid(-margins_B)


def ipo_losses(log_ratios_BP: Tensor, *, tau: float) -> Tensor:
    """Return the loss of each pair (B,): the squared distance of the margin from 1 / (2 tau)
    (Azar et al. 2023, arXiv:2310.12036). `log_ratios_BP`: of model to base."""
    return (log_ratios_BP[:, 0] - log_ratios_BP[:, 1] - 1 / (2 * tau)) ** 2


def odds_ratio_losses(log_probabilities_BP: Tensor) -> Tensor:
    """Return -log sigmoid(log odds ratio) of each pair (B,), in nats (Hong et al. 2024,
    arXiv:2403.07691). `log_probabilities_BP`: mean log-likelihood of a token of each response."""
    from torch.nn.functional import logsigmoid

    log_odds_BP = log_probabilities_BP - _log_complement(log_probabilities_BP)
    return -logsigmoid(log_odds_BP[:, 0] - log_odds_BP[:, 1])


def reward_losses(rewards_BP: Tensor, margins_B: Tensor, *, centering: float) -> Tensor:
    """Return the loss of each pair (B,) of a reward model, in nats (Bradley-Terry).

    `margins_B`: by how much the chosen response is better (Touvron et al. 2023, arXiv:2307.09288).
    `centering`: weight of the squared sum of the two rewards (Eisenstein et al. 2023,
    arXiv:2312.09244).
    """
    differences_B = rewards_BP[:, 0] - rewards_BP[:, 1] - margins_B
    losses_B = sigmoid_losses(differences_B, label_smoothing=0.0)
    return losses_B + centering * rewards_BP.sum(1) ** 2


def kto_losses(
    log_ratios_B: Tensor, is_desirable_B: Tensor, *, beta: float, kl_B: Tensor
) -> Tensor:
    """Return the loss of each response (B,), 0 to 1 (Ethayarajh et al. 2024, arXiv:2402.01306).

    It is 1 - sigmoid of the reward above the reference point if the response is desirable, else
    below it. `log_ratios_B`: of model to base. `is_desirable_B`: bool. `kl_B`: the KL divergence
    of model from base in nats, of which the reference point has no gradient.
    """
    import torch

    rewards_B = beta * (log_ratios_B - kl_B.detach().clamp(min=0))
    return 1 - torch.sigmoid(torch.where(is_desirable_B, rewards_B, -rewards_B))


def _log_complement(log_probabilities: Tensor) -> Tensor:
    """Return log(1 - p) from log p, without cancellation."""
    import torch

    clamped = log_probabilities.clamp(max=LARGEST_LOG_PROBABILITY)
    return torch.log(-torch.expm1(clamped))

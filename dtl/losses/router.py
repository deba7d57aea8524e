"""Losses of mixture-of-experts routers, as sums over parts of a global batch."""

# N tokens of a batch, E experts, K experts of a token, B sequences, T tokens of a sequence

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from dtl.models.router_outputs import Routing


def count_assignments(routing: Routing) -> Tensor:
    """Return how many tokens each expert gets over all layers, then tokens x layers (E + 1,), fp64.

    Counts of parts of a batch add up to those of the batch.
    """
    import torch

    mask_N = routing.mask_N.double()
    experts = routing.logits[0].shape[-1]
    counts_E = torch.zeros(experts, dtype=torch.float64, device=mask_N.device)
    for logits in routing.logits:
        selected_NK = logits.detach().reshape(-1, experts).topk(routing.top_k, dim=-1).indices
        counts_E.scatter_add_(0, selected_NK.reshape(-1), mask_N.repeat_interleave(routing.top_k))
    tokens = mask_N.sum() * len(routing.logits)
    return torch.cat([counts_E, tokens[None]])


def balance_loss_share(routing: Routing, counts: Tensor) -> Tensor:
    """Return this part's share of the load-balancing loss of a global batch, (), fp32.

    The loss (Fedus et al. 2021, arXiv:2101.03961, eq. 4 to 6, as transformers computes it over all
    layers) is E times the sum over experts of the share of the tokens that an expert gets, times
    its mean probability. `counts`: `count_assignments` of the global batch. The shares of its parts
    add up to the loss, and their gradients to its gradient.
    """
    shares_E = (counts[:-1] / counts[-1]).float()
    mask_N1 = routing.mask_N[:, None]
    total = shares_E.new_zeros(())
    for logits in routing.logits:
        probability_NE = logits.reshape(-1, logits.shape[-1]).float().softmax(-1)
        total = total + ((probability_NE * mask_N1).sum(0) * shares_E).sum()
    return total * (len(shares_E) / counts[-1].float())


def sequence_balance_sum(routing: Routing) -> Tensor:
    """Return the sum over sequences of their load-balancing losses, (), fp32.

    Switch Transformers balance each sequence by itself, over its layers and tokens.
    """
    import torch

    mask_BT1 = routing.mask_BT[..., None].float()
    selected_BE = prob_BE = torch.zeros((), device=mask_BT1.device)
    for logits_BTE in routing.logits:
        probability_BTE = logits_BTE.float().softmax(-1)
        chosen_BTE = torch.zeros_like(probability_BTE).scatter_(
            -1, logits_BTE.topk(routing.top_k, dim=-1).indices, 1.0
        )
        selected_BE = selected_BE + (chosen_BTE * mask_BT1).sum(1)
        prob_BE = prob_BE + (probability_BTE * mask_BT1).sum(1)
    tokens_B1 = (mask_BT1.sum(1) * len(routing.logits)).clamp(min=1)
    experts = selected_BE.shape[-1]
    return ((selected_BE / tokens_B1) * (prob_BE / tokens_B1)).sum() * experts


def z_loss_sum(routing: Routing) -> Tensor:
    """Return the sum over tokens and layers of the squared log-partition of the router, (), fp32
    (Zoph et al. 2022, arXiv:2202.08906)."""
    import torch

    mask_N = routing.mask_N
    terms = [
        (logits.reshape(-1, logits.shape[-1]).float().logsumexp(-1) ** 2 * mask_N).sum()
        for logits in routing.logits
    ]
    return torch.stack(terms).sum()

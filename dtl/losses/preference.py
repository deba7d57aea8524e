"""Direct preference optimization (DPO; Rafailov et al. 2023, arXiv:2305.18290)."""

# B pairs, P the two responses of a pair (chosen, rejected), T tokens, V vocabulary

from __future__ import annotations

from typing import TYPE_CHECKING

from dtl.losses.cross_entropy import token_cross_entropy

if TYPE_CHECKING:
    from torch import Tensor


def log_likelihoods(logits_NTV: Tensor, labels_BPT: Tensor) -> Tensor:
    """Return the log-likelihood of each response (B, P), summed over its tokens, in fp32.

    `logits_NTV`: of the flattened pairs, N = B * P. `labels_BPT`: int64, aligned with the logits;
    IGNORE_INDEX outside of the response.
    """
    losses_NT = token_cross_entropy(logits_NTV, labels_BPT.flatten(0, 1))
    return -losses_NT.view(*labels_BPT.shape[:2], -1).sum(-1)


def dpo_losses(rewards_BP: Tensor, *, label_smoothing: float) -> Tensor:
    """Return the loss of each pair (B,) in nats.

    `rewards_BP`: beta times the log-ratio of model to base. `label_smoothing`: the share of the
    pairs whose order is assumed to be wrong.
    """
    from torch.nn.functional import logsigmoid

    margins_B = rewards_BP[:, 0] - rewards_BP[:, 1]
    return -(1 - label_smoothing) * logsigmoid(margins_B) - label_smoothing * logsigmoid(-margins_B)

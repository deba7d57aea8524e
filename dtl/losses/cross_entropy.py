"""Cross-entropy of tokens and of classes, in nats."""

# B batch, T tokens, V vocabulary, C classes

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_POSITIONS = 512  # whose logits are in fp32 at once, where no gradient is needed
IGNORE_INDEX = -100  # the label of a position that no loss counts, as in torch


def token_cross_entropy(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """Return the loss of each token (B, T), fp32; 0 where the label is IGNORE_INDEX.

    `logits_BTV`: any float dtype. `labels_BT`: int64, already aligned with the logits. Without
    gradients no more than `CHUNK_POSITIONS` positions are in fp32 at once.
    """
    import torch

    if torch.is_grad_enabled() and logits_BTV.requires_grad:
        losses_N = _cross_entropies(logits_BTV.flatten(0, 1), labels_BT.flatten())
        return losses_N.view(labels_BT.shape)
    if labels_BT.numel() == 0:
        return torch.zeros(labels_BT.shape, device=logits_BTV.device)
    # In chunks, because fp32 copies of all logits may take more memory than the model.
    rows = [
        torch.cat(
            [
                _cross_entropies(logits_NV, labels_N)
                for logits_NV, labels_N in zip(
                    logits_TV.split(CHUNK_POSITIONS), labels_T.split(CHUNK_POSITIONS), strict=True
                )
            ]
        )
        for logits_TV, labels_T in zip(logits_BTV, labels_BT, strict=True)
    ]
    return torch.stack(rows)


def _cross_entropies(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """Return the loss of each position (N,), fp32."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits_NV.float(), labels_N, ignore_index=IGNORE_INDEX, reduction="none")


def class_cross_entropy(
    logits_BC: Tensor,
    labels_B: Tensor,
    *,
    weights_B: Tensor | None = None,
    focal_gamma: float = 0.0,
) -> Tensor:
    """Return the loss of each example (B,), in the dtype of the logits.

    `weights_B`: factors of the losses. `focal_gamma`: above 0, the focal loss (see focal.py).
    """
    from torch.nn.functional import cross_entropy

    from dtl.losses.focal import focal_losses

    losses_B = focal_losses(cross_entropy(logits_BC, labels_B, reduction="none"), gamma=focal_gamma)
    return losses_B if weights_B is None else losses_B * weights_B

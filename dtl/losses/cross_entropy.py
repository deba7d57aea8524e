"""Cross-entropy of tokens and of classes, in nats."""

# B batch, T tokens, V vocabulary, C classes

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

IGNORE_INDEX = -100  # the label of a position that no loss counts, as in torch


def token_cross_entropy(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """Return the loss of each token (B, T), fp32; 0 where the label is IGNORE_INDEX.

    `logits_BTV`: any float dtype. `labels_BT`: int64, already aligned with the logits.
    """
    from torch.nn.functional import cross_entropy

    return cross_entropy(
        logits_BTV.flatten(0, 1).float(),
        labels_BT.flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="none",
    ).view(labels_BT.shape)


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

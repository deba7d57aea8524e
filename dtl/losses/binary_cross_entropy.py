"""Binary cross-entropy of labels that may occur together, in nats."""

# B batch, C labels

from __future__ import annotations

from typing import TYPE_CHECKING

from dtl.losses.focal import focal_losses

if TYPE_CHECKING:
    from torch import Tensor


def label_cross_entropy(
    logits_BC: Tensor,
    labels_BC: Tensor,
    *,
    weights_BC: Tensor | None = None,
    focal_gamma: float = 0.0,
) -> Tensor:
    """Return the loss of each label of each example (B, C), in the dtype of the logits.

    `labels_BC`: 1 where an example has a label, else 0; the dtype of the logits. `weights_BC`:
    factors of the losses. `focal_gamma`: above 0, the focal loss (see focal.py).
    """
    from torch.nn.functional import binary_cross_entropy_with_logits

    losses_BC = binary_cross_entropy_with_logits(logits_BC, labels_BC, reduction="none")
    losses_BC = focal_losses(losses_BC, gamma=focal_gamma)
    return losses_BC if weights_BC is None else losses_BC * weights_BC

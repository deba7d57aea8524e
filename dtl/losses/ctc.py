"""Connectionist temporal classification (Graves et al. 2006)."""

# B batch, F frames, L labels, V vocabulary

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from dtl.losses.cross_entropy import IGNORE_INDEX

if TYPE_CHECKING:
    from torch import Tensor


def ctc_losses(
    logits_BFV: Tensor, labels_BL: Tensor, frame_counts_B: Tensor, *, blank: int
) -> Tensor:
    """Return the loss of each example (B,) in nats, fp32; 0 where nothing can be aligned.

    `logits_BFV`: fp32. `labels_BL`: int64, padded with IGNORE_INDEX. `frame_counts_B`: int64,
    the frames of each example before padding. `blank`: the token of the CTC blank.
    """
    import torch
    from torch.nn.functional import ctc_loss

    with torch.backends.cudnn.flags(enabled=False):  # cuDNN accepts at most 256 labels
        return ctc_loss(
            logits_BFV.log_softmax(-1).transpose(0, 1),
            labels_BL.clamp(min=0),
            frame_counts_B,
            (labels_BL != IGNORE_INDEX).sum(1),
            blank=blank,
            reduction="none",
            zero_infinity=True,
        )


def min_frames(labels: list[int]) -> int:
    """Return the fewest frames that CTC can align with labels: equal neighbors need a blank."""
    repeats = sum(left == right for left, right in pairwise(labels))
    return len(labels) + repeats

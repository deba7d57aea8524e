"""Loss, perplexity and accuracy of predicted tokens."""

# B batch, N examples, T tokens

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dtl.losses.cross_entropy import IGNORE_INDEX
from dtl.metrics.base import EvalRecord

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from dtl.losses.language_model import TokenScores

MAX_EXPONENT = 700.0  # exp of more is infinite in fp64


def token_records(scores: TokenScores, targets_BT: Tensor) -> list[EvalRecord]:
    """Return of each example its loss (nats, summed in fp64), targets and correct tokens."""
    columns = (
        scores.losses_BT.double().sum(1),
        (targets_BT != IGNORE_INDEX).sum(1),
        scores.is_correct_BT.sum(1),
    )
    return [
        {"loss": loss, "targets": targets, "correct": correct}
        for loss, targets, correct in zip(*(column.tolist() for column in columns), strict=True)
    ]


def mean_loss(records: list[EvalRecord]) -> float:
    """Return the loss of a target in nats, over all records."""
    targets = sum(record["targets"] for record in records)
    return math.fsum(record["loss"] for record in records) / targets


def token_accuracy(records: list[EvalRecord]) -> float:
    """Return the share of targets that are the most likely token."""
    targets = sum(record["targets"] for record in records)
    return float(sum(record["correct"] for record in records) / targets)


def perplexity_scores(records: list[EvalRecord]) -> dict[str, float]:
    """Return loss (nats a token), perplexity = exp(loss), and token accuracy."""
    loss = mean_loss(records)
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, MAX_EXPONENT)),
        "accuracy": token_accuracy(records),
    }


def loss_counts(records: list[EvalRecord]) -> np.ndarray:
    """Return of each example (N, 2), fp64: its loss and its targets."""
    import numpy as np

    return np.array([(record["loss"], record["targets"]) for record in records], dtype=np.float64)


def perplexity_from_counts(counts: np.ndarray) -> np.ndarray:
    """Return the perplexity of sums of loss_counts: (..., 2) to (...)."""
    import numpy as np

    return np.exp(np.minimum(counts[..., 0] / counts[..., 1], MAX_EXPONENT))

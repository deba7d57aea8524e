"""F1, mean average precision and best thresholds of labels that may occur together."""

# B batch, N examples, C labels

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dtl.metrics.base import EvalRecord

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

MAX_LISTED_LABELS = 100  # with more labels, the scores of each label are left out


def label_records(logits_BC: Tensor, labels_BC: Tensor, losses_BC: Tensor) -> list[EvalRecord]:
    """Return of each example its loss (nats, summed over the labels in fp64), the number of its
    targets, the indices of its `labels`, and the `scores` (logits) of all labels."""
    columns = (losses_BC.double().sum(1).tolist(), labels_BC.tolist(), logits_BC.tolist())
    return [
        {
            "loss": loss,
            "targets": len(scores),
            "labels": [index for index, value in enumerate(labels) if value],
            "scores": scores,
        }
        for loss, labels, scores in zip(*columns, strict=True)
    ]


def decide_labels(scores: np.ndarray, thresholds_C: Sequence[float]) -> np.ndarray:
    """Return whether each label is predicted (..., C): its probability exceeds its threshold.

    `scores`: logits (..., C).
    """
    import numpy as np

    shares_C = np.asarray(thresholds_C, dtype=np.float64)
    with np.errstate(divide="ignore"):  # a threshold of 0 or 1 is a logit of minus or plus infinity
        limits_C = np.log(shares_C) - np.log1p(-shares_C)
    decided: np.ndarray = np.asarray(scores, dtype=np.float64) > limits_C
    return decided


def _true_labels(records: list[EvalRecord], classes: int) -> np.ndarray:
    """Return whether each example has each label (N, C)."""
    import numpy as np

    true_NC = np.zeros((len(records), classes), dtype=bool)
    for row, record in enumerate(records):
        true_NC[row, record["labels"]] = True
    return true_NC


def label_f1_counts(records: list[EvalRecord], thresholds_C: Sequence[float]) -> np.ndarray:
    """Return of each example (N, 3), fp64: labels that are correct, predicted and true."""
    import numpy as np

    true_NC = _true_labels(records, len(thresholds_C))
    predicted_NC = decide_labels(np.array([record["scores"] for record in records]), thresholds_C)
    counts = [(true_NC & predicted_NC).sum(1), predicted_NC.sum(1), true_NC.sum(1)]
    return np.array(counts, dtype=np.float64).T


def micro_f1_from_counts(counts: np.ndarray) -> np.ndarray:
    """Return the micro-averaged F1 of sums of label_f1_counts: (..., 3) to (...); 0 where no label
    is predicted or true."""
    import numpy as np

    return 2 * counts[..., 0] / np.maximum(counts[..., 1] + counts[..., 2], 1)


def label_scores(
    records: list[EvalRecord], labels: Sequence[str], thresholds_C: Sequence[float]
) -> dict[str, float]:
    """Return mean loss of a target, the share of examples of which all labels are right (accuracy),
    micro- and macro-F1, and `map`: the mean over the labels of their average precision.

    `map` is over the labels that some example has. Then F1, average precision, support and best
    threshold of each label (see find_best_threshold).
    """
    import numpy as np
    from sklearn.metrics import accuracy_score, average_precision_score, f1_score

    scores_NC = np.array([record["scores"] for record in records], dtype=np.float64)
    true_NC = _true_labels(records, len(labels))
    predicted_NC = decide_labels(scores_NC, thresholds_C)
    f1: Any = f1_score(true_NC, predicted_NC, average=None, zero_division=0.0)
    micro = f1_score(true_NC, predicted_NC, average="micro", zero_division=0.0)
    precisions = {
        index: float(average_precision_score(true_NC[:, index], scores_NC[:, index]))
        for index in np.flatnonzero(true_NC.any(0)).tolist()
    }
    scores = {
        "loss": math.fsum(record["loss"] for record in records) / true_NC.size,
        "accuracy": float(accuracy_score(true_NC, predicted_NC)),
        "micro_f1": float(micro),
        "macro_f1": float(np.mean(f1)),
        "map": math.fsum(precisions.values()) / max(1, len(precisions)),
    }
    if len(labels) > MAX_LISTED_LABELS:
        return scores
    for index, label in enumerate(labels):
        scores[f"f1/{label}"] = float(f1[index])
        scores[f"support/{label}"] = int(true_NC[:, index].sum())
        if index in precisions:
            scores[f"average_precision/{label}"] = precisions[index]
            best = find_best_threshold(true_NC[:, index], scores_NC[:, index])
            scores[f"best_threshold/{label}"] = best
    return scores


def find_best_threshold(true_N: np.ndarray, scores_N: np.ndarray) -> float:
    """Return the probability above which predicting a label has the highest F1 on these examples,
    halfway between the logits (N,) around it. `true_N`: bool, with at least one True."""
    import numpy as np

    order = np.argsort(-scores_N, kind="stable")
    descending = scores_N[order]
    correct = np.cumsum(true_N[order])
    f1 = 2 * correct / (np.arange(1, len(order) + 1) + true_N.sum())
    is_cut = np.append(descending[:-1] != descending[1:], True)
    last = int(np.argmax(np.where(is_cut, f1, -1.0)))
    if last + 1 == len(order):
        return 0.0
    return float(1 / (1 + np.exp(-(descending[last] + descending[last + 1]) / 2)))


def predict_label_sets(
    logits_BC: Tensor, labels: Sequence[str], thresholds_C: Sequence[float]
) -> list[dict[str, Any]]:
    """Return the labels of each example whose probability exceeds their threshold, and the
    probability of each label."""
    decided_BC = decide_labels(logits_BC.double().cpu().numpy(), thresholds_C)
    return [
        {
            "predicted": [
                label for label, is_decided in zip(labels, row, strict=True) if is_decided
            ],
            "probabilities": dict(zip(labels, shares, strict=True)),
        }
        for row, shares in zip(decided_BC.tolist(), logits_BC.sigmoid().tolist(), strict=True)
    ]

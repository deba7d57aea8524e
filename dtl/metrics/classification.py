"""Accuracy, macro-F1, top-5 accuracy and confusion counts of single-label classification."""

# B batch, N examples, C classes

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dtl.metrics.base import EvalRecord

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

MAX_CLASSES_OF_FULL_MATRIX = 20  # with more classes, only the most frequent confusions are listed
MAX_CONFUSIONS = 100
TOP_K = 5


def classification_records(
    logits_BC: Tensor, labels_B: Tensor, losses_B: Tensor
) -> list[EvalRecord]:
    """Return of each example its loss (nats), label, predicted class and `label_rank`.

    `logits_BC`: fp32. `label_rank`: the number of classes with a higher score than the label.
    """
    label_ranks_B = (logits_BC > logits_BC.gather(1, labels_B[:, None])).sum(1)
    columns = (losses_B, labels_B, logits_BC.argmax(-1), label_ranks_B)
    names = ("loss", "label", "predicted", "label_rank")
    return [
        dict(zip(names, values, strict=True))
        for values in zip(*(column.tolist() for column in columns), strict=True)
    ]


def predict_labels(logits_BC: Tensor, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Return the most likely label of each example, and the probability of each label."""
    return [
        {
            "predicted": labels[max(range(len(shares)), key=shares.__getitem__)],
            "probabilities": dict(zip(labels, shares, strict=True)),
        }
        for shares in logits_BC.softmax(-1).tolist()
    ]


def f1_counts(records: list[EvalRecord], classes: int) -> np.ndarray:
    """Return of each example (N, 3C), fp64: for each class whether it is a true positive,
    predicted, and true."""
    import numpy as np

    ones = np.eye(classes)
    true_NC = ones[[record["label"] for record in records]]
    predicted_NC = ones[[record["predicted"] for record in records]]
    return np.concatenate([true_NC * predicted_NC, predicted_NC, true_NC], axis=1)


def macro_f1_from_counts(counts: np.ndarray) -> np.ndarray:
    """Return macro-F1 over the classes that occur, from sums of f1_counts: (..., 3C) to (...)."""
    import numpy as np

    true_positives, predicted, true = np.split(counts, 3, axis=-1)
    occurs = predicted + true > 0
    f1 = 2 * true_positives / np.where(occurs, predicted + true, 1)
    value: np.ndarray = f1.sum(-1) / occurs.sum(-1)
    return value


def classification_scores(records: list[EvalRecord], labels: Sequence[str]) -> dict[str, float]:
    """Return mean loss, accuracy, macro-F1 over the labels that occur, top-5 accuracy (with more
    than five labels), and the confusion counts."""
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

    truth = [record["label"] for record in records]
    predicted = [record["predicted"] for record in records]
    scores = {
        "loss": math.fsum(record["loss"] for record in records) / len(records),
        "accuracy": float(accuracy_score(truth, predicted)),
        "macro_f1": float(f1_score(truth, predicted, average="macro", zero_division=0.0)),
    }
    if len(labels) > TOP_K:
        in_top_k = sum(record["label_rank"] < TOP_K for record in records)
        scores[f"top_{TOP_K}"] = in_top_k / len(records)
    counts = confusion_matrix(truth, predicted, labels=range(len(labels)))
    return {**scores, **_confusion_scores(counts, labels)}


def _confusion_scores(counts: Any, labels: Sequence[str]) -> dict[str, float]:
    is_full = len(labels) <= MAX_CLASSES_OF_FULL_MATRIX
    cells = {
        f"confusion/{actual}/{predicted}": int(counts[row, column])
        for row, actual in enumerate(labels)
        for column, predicted in enumerate(labels)
        if is_full or (row != column and counts[row, column])
    }
    if is_full:
        return dict(cells)
    most_frequent = sorted(cells, key=lambda name: -cells[name])[:MAX_CONFUSIONS]
    return {name: cells[name] for name in most_frequent}

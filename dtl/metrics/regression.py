"""Errors and correlations of predicted numbers."""

# B batch, N examples, K numbers of an example

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dtl.metrics.base import EvalRecord

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

SUMS = 6  # of a number: count, x, y, x * x, y * y, x * y


def number_records(predicted_BK: Tensor, numbers_BK: Tensor, losses_BK: Tensor) -> list[EvalRecord]:
    """Return of each example its loss (squared errors, summed in fp64), the number of its targets,
    its `numbers` and those that are predicted."""
    columns = (losses_BK.double().sum(1), numbers_BK, predicted_BK)
    return [
        {"loss": loss, "targets": len(numbers), "numbers": numbers, "predicted": predicted}
        for loss, numbers, predicted in zip(*(each.tolist() for each in columns), strict=True)
    ]


def number_scores(records: list[EvalRecord], names: Sequence[str]) -> dict[str, float]:
    """Return the mean loss (mean squared error), its root, the mean absolute error, and R2,
    Pearson's and Spearman's correlation: means over the numbers of an example.

    A correlation with numbers that are all equal is not defined, and counts as 0. With several
    numbers, also the correlations of each.
    """
    import numpy as np

    records = sorted(records, key=lambda one: (one["numbers"], one["predicted"]))  # exact sums
    true_NK = np.array([record["numbers"] for record in records], dtype=np.float64)
    predicted_NK = np.array([record["predicted"] for record in records], dtype=np.float64)
    columns = list(zip(true_NK.T, predicted_NK.T, strict=True))
    pearson = [correlate(true, predicted) for true, predicted in columns]
    spearman = [correlate(rank(true), rank(predicted)) for true, predicted in columns]
    loss = math.fsum(record["loss"] for record in records) / true_NK.size
    scores = {
        "loss": loss,
        "rmse": float(np.sqrt(np.mean((true_NK - predicted_NK) ** 2))),
        "mae": float(np.mean(np.abs(true_NK - predicted_NK))),
        "r2": float(np.mean([_explained(true, predicted) for true, predicted in columns])),
        "pearson": float(np.mean(pearson)),
        "spearman": float(np.mean(spearman)),
    }
    if len(names) > 1:
        for name, values in (("pearson", pearson), ("spearman", spearman)):
            scores |= {f"{name}/{of}": value for of, value in zip(names, values, strict=True)}
    return scores


def _explained(true_N: np.ndarray, predicted_N: np.ndarray) -> float:
    """Return R2, the share of the variance that is explained; 0 where there is none."""
    total = float(((true_N - true_N.mean()) ** 2).sum())
    return 1 - float(((true_N - predicted_N) ** 2).sum()) / total if total > 0 else 0.0


def rank(values_N: np.ndarray) -> np.ndarray:
    """Return the ranks (N,), from 1; equal values have the mean of theirs."""
    import numpy as np

    _, groups, sizes = np.unique(values_N, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (np.cumsum(sizes) - (sizes - 1) / 2)[groups]
    return ranks


def correlate(true_N: np.ndarray, predicted_N: np.ndarray) -> float:
    """Return Pearson's correlation; 0 where all numbers are equal."""
    return float(_correlation(_sums(true_N[:, None], predicted_N[:, None]).sum(0)))


def correlation_counts(records: list[EvalRecord]) -> np.ndarray:
    """Return of each example (N, 6 * K), fp64, the sums that a correlation is made of."""
    import numpy as np

    true_NK, predicted_NK = (
        np.array([record[name] for record in records], dtype=np.float64)
        for name in ("numbers", "predicted")
    )
    return _sums(true_NK, predicted_NK)


def pearson_from_counts(counts: np.ndarray) -> np.ndarray:
    """Return the mean of the K correlations of sums of correlation_counts: (..., 6 * K) to
    (...)."""
    value: np.ndarray = _correlation(counts.reshape(*counts.shape[:-1], -1, SUMS)).mean(-1)
    return value


def _sums(true_NK: np.ndarray, predicted_NK: np.ndarray) -> np.ndarray:
    """Return (N, 6 * K). The numbers are relative to their means, so that little is lost."""
    import numpy as np

    x, y = (values - values.mean(0) for values in (true_NK, predicted_NK))
    return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=-1).reshape(len(x), -1)


def _correlation(sums: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation of sums: (..., 6) to (...); 0 where a variance is 0."""
    import numpy as np

    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    variances = (xx - x * x / n) * (yy - y * y / n)
    # A variance that is lost in rounding is that of equal numbers.
    is_defined = (xx - x * x / n > 1e-12 * xx) & (yy - y * y / n > 1e-12 * yy)
    value: np.ndarray = np.where(
        is_defined, (xy - x * y / n) / np.sqrt(np.where(is_defined, variances, 1)), 0.0
    )
    return value


def predict_numbers(predicted_BK: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the predicted number of each example; of several, by their names."""
    return [
        {"predicted": row[0] if len(names) == 1 else dict(zip(names, row, strict=True))}
        for row in predicted_BK.tolist()
    ]

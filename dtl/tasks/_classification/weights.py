"""The weights of labels in the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dtl.core.errors import DtlError

ClassWeights = str | Mapping[str, float] | None


def class_weights(
    weights: ClassWeights, counts: Mapping[str, int], labels: Sequence[str]
) -> list[float] | None:
    """Return the weight of each class, or None without weights.

    balanced: as in scikit-learn, rows / (classes * rows of the class). They are scaled to a mean of
    1 over the training rows, whose loss then is the weighted mean of torch. `counts`: the training
    rows of each class. Raises DtlError for the name of no class.
    """
    if weights is None:
        return None
    rows, occurring = sum(counts.values()), [label for label in labels if counts.get(label)]
    if isinstance(weights, str):
        values = {label: rows / (len(occurring) * counts[label]) for label in occurring}
    else:
        _check_names(weights, labels)
        values = {label: float(weights.get(label, 1.0)) for label in labels}
    mean = sum(counts[label] * values[label] for label in occurring) / rows
    return [values.get(label, mean) / mean for label in labels]


def positive_weights(
    weights: ClassWeights, counts: Mapping[str, int], labels: Sequence[str], *, rows: int
) -> list[float] | None:
    """Return the weight of each label where a row has it (torch's pos_weight), or None.

    balanced: the rows without the label for each row with it. Raises DtlError for the name of no
    label.
    """
    if weights is None:
        return None
    if isinstance(weights, str):
        return [
            (rows - counts[label]) / counts[label] if 0 < counts.get(label, 0) < rows else 1.0
            for label in labels
        ]
    _check_names(weights, labels)
    return [float(weights.get(label, 1.0)) for label in labels]


def _check_names(weights: Mapping[str, float], labels: Sequence[str]) -> None:
    unknown = [name for name in weights if name not in labels]
    if unknown:
        raise DtlError.of(
            "task.class_weights",
            f"{unknown[0]!r} is not a label",
            f"use the labels {', '.join(labels)}",
        )

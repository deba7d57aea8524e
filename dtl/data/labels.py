"""Class labels of rows: their validation, order and indices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dtl.core.errors import DtlError, Fault, near

if TYPE_CHECKING:
    from dtl.data.sources.rows import Row


def get_label(row: Row) -> str:
    """Return the label of a valid row, as text."""
    return str(row.fields["label"])


def find_label_fault(row: Row, allowed: Sequence[str] | None) -> Fault | None:
    """Return the fault of a row's `label`, or None. `allowed`: the labels of task.labels."""
    value = row.fields.get("label")
    if value is None or isinstance(value, (list, dict, bytes)):
        columns = ", ".join(map(repr, row.fields)) or "nothing"
        return Fault(
            row.location,
            f"the column `label` is missing (the row has {columns})"
            if value is None
            else f"`label` is a {type(value).__name__} (expected a string or number)",
            "give each row one label, or map its column in data.columns: {label: ...}",
        )
    label = get_label(row)
    if allowed is None or label in allowed:
        return None
    return Fault(
        row.location,
        f"the label {label!r} is not in task.labels ({_suggest_label(label, allowed)})",
        "correct the row, or add the label",
    )


def collect_labels(rows: Iterable[Row], base: Any, allowed: Sequence[str] | None) -> list[str]:
    """Return the labels in order: those allowed, else those of the rows, sorted; in the base's own
    order if it has a head for exactly these. Raises DtlError for fewer than two."""
    occurring = sorted({get_label(row) for row in rows})
    labels = list(allowed or occurring)
    if len(labels) < 2:
        raise DtlError.of(
            "data.train",
            f"all rows have the label {labels[0]!r}" if labels else "there are no rows",
            "add rows of at least two labels",
        )
    base_labels = [str(name) for _, name in sorted((getattr(base, "id2label", None) or {}).items())]
    return base_labels if set(base_labels) == set(labels) else labels


def get_label_index(row: Row, label_indices: dict[str, int]) -> int:
    """Return the index of a row's label. Raises DtlError if no training row has this label."""
    label = get_label(row)
    if label not in label_indices:
        suggestion = _suggest_label(label, label_indices)
        raise DtlError.of(
            row.location,
            f"the label {label!r} does not occur in the training rows ({suggestion})",
            "correct the row, or list every label in task.labels",
        )
    return label_indices[label]


def _suggest_label(label: str, known: Iterable[str]) -> str:
    return near(label, known) or "the labels are " + ", ".join(known)


def classification_head_settings(labels: Sequence[str]) -> dict[str, Any]:
    """Return the config settings that give a transformers model a head for these labels."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
        "problem_type": "single_label_classification",
    }

"""Labels of rows: their faults, their order and their class numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dtl.core.errors import DtlError, Fault, near

if TYPE_CHECKING:
    from dtl.data.sources.rows import Row


def get_label(row: Row) -> str:
    return str(row.fields["label"])


def find_label_fault(row: Row, allowed: Sequence[str] | None) -> Fault | None:
    """What is wrong with a row's `label`; `listed`: the labels that there may be."""
    value = row.fields.get("label")
    if value is None or isinstance(value, (list, dict, bytes)):
        named = ", ".join(map(repr, row.fields)) or "nothing"
        return Fault(
            row.location,
            f"there is no `label` (the row has {named})"
            if value is None
            else f"`label` is a {type(value).__name__}",
            "give each row one label, or map its column in data.columns: {label: ...}",
        )
    label = get_label(row)
    if allowed is None or label in allowed:
        return None
    return Fault(
        row.location,
        f"label {label!r} is not in task.labels ({_suggest_label(label, allowed)})",
        "correct the row, or add the label",
    )


def collect_labels(rows: Iterable[Row], base: Any, allowed: Sequence[str] | None) -> list[str]:
    """The labels in order: those listed, else those of the rows, sorted; in the base's own order
    where it has a head for exactly these. Raises DtlError for fewer than two."""
    seen = sorted({get_label(row) for row in rows})
    labels = list(allowed or seen)
    if len(labels) < 2:
        raise DtlError.of(
            "data.train",
            f"all rows have the label {labels[0]!r}" if labels else "there are no rows",
            "classification needs at least two labels",
        )
    known = [str(name) for _, name in sorted((getattr(base, "id2label", None) or {}).items())]
    return known if set(known) == set(labels) else labels


def get_label_index(row: Row, label_indices: dict[str, int]) -> int:
    """The number of a row's label. Raises DtlError for one that no training row has."""
    label = get_label(row)
    if label not in label_indices:
        raise DtlError.of(
            row.location,
            f"label {label!r} does not occur in the training rows ({_suggest_label(label, label_indices)})",
            "correct the row, or list every label in task.labels",
        )
    return label_indices[label]


def _suggest_label(label: str, known: Iterable[str]) -> str:
    return near(label, known) or "the labels are " + ", ".join(known)


def classification_head_settings(labels: Sequence[str]) -> dict[str, Any]:
    """Settings that give a transformers model a head for these labels."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: place for place, label in enumerate(labels)},
        "problem_type": "single_label_classification",
    }

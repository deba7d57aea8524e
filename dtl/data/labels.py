"""Labels of rows: their faults, their order and their class numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dtl.core.errors import DtlError, Fault, near

if TYPE_CHECKING:
    from dtl.data.sources.rows import Row


def label_of(row: Row) -> str:
    return str(row.fields["label"])


def label_fault(row: Row, listed: Sequence[str] | None) -> Fault | None:
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
    label = label_of(row)
    if listed is None or label in listed:
        return None
    return Fault(
        row.location,
        f"label {label!r} is not in task.labels ({_hint(label, listed)})",
        "correct the row, or add the label",
    )


def labels_of(rows: Iterable[Row], base: Any, listed: Sequence[str] | None) -> list[str]:
    """The labels in order: those listed, else those of the rows, sorted; in the base's own order
    where it has a head for exactly these. Raises DtlError for fewer than two."""
    seen = sorted({label_of(row) for row in rows})
    labels = list(listed or seen)
    if len(labels) < 2:
        raise DtlError.of(
            "data.train",
            f"all rows have the label {labels[0]!r}" if labels else "there are no rows",
            "classification needs at least two labels",
        )
    known = [str(name) for _, name in sorted((getattr(base, "id2label", None) or {}).items())]
    return known if set(known) == set(labels) else labels


def place_of(row: Row, places: dict[str, int]) -> int:
    """The number of a row's label. Raises DtlError for one that no training row has."""
    label = label_of(row)
    if label not in places:
        raise DtlError.of(
            row.location,
            f"label {label!r} does not occur in the training rows ({_hint(label, places)})",
            "correct the row, or list every label in task.labels",
        )
    return places[label]


def _hint(label: str, known: Iterable[str]) -> str:
    return near(label, known) or "the labels are " + ", ".join(known)


def head_for(labels: Sequence[str]) -> dict[str, Any]:
    """Settings that give a transformers model a head for these labels."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: place for place, label in enumerate(labels)},
        "problem_type": "single_label_classification",
    }

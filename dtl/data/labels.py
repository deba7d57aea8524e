"""Class labels of rows: their validation, order and indices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dtl.core.errors import DtlError, Fault, near
from dtl.data.label_values import (
    CLASS_NUMBER,
    are_class_numbers,
    is_missing,
    label_text,
    sort_labels,
)

if TYPE_CHECKING:
    from dtl.data.sources.rows import Row

MISSING_FIX = (
    "give each row a label, or leave these rows out (data.on_bad_row=skip); a class that is called "
    "like this must be listed in task.labels"
)


def to_label(value: object, names: Sequence[str] | None) -> str:
    """Return the class that a valid value names. `names`: task.labels, to which numbers refer if no
    name is a number itself."""
    text = label_text(value)
    if _is_class_number(text, names):
        assert names is not None
        return names[int(text)]
    return text


def describe_label_problem(value: object, names: Sequence[str] | None) -> tuple[str, str] | None:
    """Return problem and fix of a value that is not a label, or None. `names`: task.labels."""
    if isinstance(value, (list, dict, bytes)):
        kind = type(value).__name__
        fix = "give each row one label, or map its column in data.columns: {label: ...}"
        if isinstance(value, list):
            fix += "; for several labels set task.problem_type=multi_label_classification"
        return f"`label` is a {kind} (expected a string or number)", fix
    text = label_text(value)
    if names is not None and text in names:
        return None
    if is_missing(value):
        return f"the label is missing (`label` is {value!r})", MISSING_FIX
    if names is None:
        return None
    if CLASS_NUMBER.fullmatch(text) and are_class_numbers(names):
        if _is_class_number(text, names):
            return None
        problem = f"the class number {text} has no name: task.labels has {len(names)}, from 0"
        return problem, "correct the row, or list every label in task.labels"
    problem = f"the label {text!r} is not in task.labels ({_suggest_label(text, names)})"
    return problem, "correct the row, or add the label"


def find_label_fault(row: Row, names: Sequence[str] | None) -> Fault | None:
    """Return the fault of a row's `label`, or None. `names`: task.labels."""
    if "label" not in row.fields:
        return missing_column_fault(row, "label")
    problem = describe_label_problem(row.fields["label"], names)
    return None if problem is None else Fault(row.location, *problem)


def missing_column_fault(row: Row, column: str) -> Fault:
    """Return the fault of a row without a column."""
    columns = ", ".join(map(repr, row.fields)) or "nothing"
    return Fault(
        row.location,
        f"the column `{column}` is missing (the row has {columns})",
        f"give each row one, or map its column in data.columns: {{{column}: ...}}",
    )


def order_labels(occurring: Iterable[str], base: Any, names: Sequence[str] | None) -> list[str]:
    """Return the labels in order: those of task.labels (`names`), else those of the rows, numbers
    by value; in the base's own order if it has a head for exactly these."""
    labels = list(names or sort_labels(occurring))
    base_labels = [str(name) for _, name in sorted((getattr(base, "id2label", None) or {}).items())]
    return base_labels if set(base_labels) == set(labels) else labels


def check_two_labels(labels: Sequence[str]) -> None:
    """Raise DtlError for fewer than two classes."""
    if len(labels) < 2:
        raise DtlError.of(
            "data.train",
            f"all rows have the label {labels[0]!r}" if labels else "there are no rows",
            "add rows of at least two labels",
        )


def get_label_index(row: Row, label: str, label_indices: dict[str, int]) -> int:
    """Return the index of a row's label. Raises DtlError if no training row has this label."""
    if label not in label_indices:
        suggestion = _suggest_label(label, label_indices)
        raise DtlError.of(
            row.location,
            f"the label {label!r} does not occur in the training rows ({suggestion})",
            "correct the row, or list every label in task.labels",
        )
    return label_indices[label]


def label_indices(labels: Sequence[str]) -> dict[str, int]:
    """Return the index of each label."""
    return {label: index for index, label in enumerate(labels)}


def label_config(labels: Sequence[str]) -> dict[str, Any]:
    """Return the config settings that give a transformers model a head with these outputs."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": label_indices(labels),
    }


def _is_class_number(text: str, names: Sequence[str] | None) -> bool:
    return (
        names is not None
        and text not in names
        and CLASS_NUMBER.fullmatch(text) is not None
        and are_class_numbers(names)
        and int(text) < len(names)
    )


def _suggest_label(label: str, known: Iterable[str]) -> str:
    return near(label, known) or "the labels are " + ", ".join(known)

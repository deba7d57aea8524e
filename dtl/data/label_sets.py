"""Several labels of one row: as a list, as one text, as 0/1 flags, or in columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dtl.data.label_values import are_class_numbers, is_missing, label_text, parse_list
from dtl.data.labels import describe_label_problem, to_label

FLAGS = {"0": False, "1": True, "false": False, "true": True}
NO_LABELS_FIX = "write [] for a row without labels, or leave it out (data.on_bad_row=skip)"
FLAGS_FIX = "write the names of the labels, such as [urgent, spam], or flags as [0.0, 1.0]"


@dataclass(frozen=True)
class LabelSet:
    """The labels of a row, or its `problem` and the `fix`. `written`: the labels as the row writes
    them, where it names them."""

    labels: tuple[str, ...] = ()
    problem: str | None = None
    fix: str = ""
    written: tuple[object, ...] = ()


def read_label_set(
    value: object, names: Sequence[str] | None, *, separator: str | None = None
) -> LabelSet:
    """Return the labels that a value lists. `names`: task.labels, to which class numbers and flags
    refer. `separator`: of the labels in one text."""
    values = parse_list(value)
    if isinstance(values, str) and separator is not None and separator in values:
        values = [part for part in values.split(separator) if label_text(part)]
    if not isinstance(values, list):
        is_listed = names is not None and label_text(values) in names
        if is_missing(values) and not is_listed:
            return LabelSet((), f"the labels are missing (`label` is {value!r})", NO_LABELS_FIX)
        values = [values]
    flags = _read_flags(values, names)
    if flags is not None:
        return flags
    labels = []
    for one in values:
        if problem := describe_label_problem(one, names):
            return LabelSet((), *problem)
        labels.append(to_label(one, names))
    if len(set(labels)) < len(labels):
        return LabelSet((), f"a label is repeated ({str(values)[:60]})", FLAGS_FIX)
    return LabelSet(tuple(labels), written=tuple(values))


def read_label_columns(
    fields: Mapping[str, object], columns: Sequence[str], names: Sequence[str]
) -> LabelSet:
    """Return the names of the columns in which a row has 1."""
    labels = []
    for column, name in zip(columns, names, strict=True):
        flag = FLAGS.get(label_text(fields[column]).lower())
        if flag is None:
            what = "is missing" if is_missing(fields[column]) else "is neither 0 nor 1"
            return LabelSet((), f"`{column}` {what} ({fields[column]!r})", "write 0 or 1")
        if flag:
            labels.append(name)
    return LabelSet(tuple(labels))


def _read_flags(values: list[object], names: Sequence[str] | None) -> LabelSet | None:
    """Return the labels of a list of 0 and 1, one for each name; None: it is not such a list."""
    is_number = [isinstance(value, bool | int | float) for value in values]
    if not values or not all(is_number) or not {float(value) for value in values} <= {0.0, 1.0}:  # type: ignore[arg-type]
        return None
    is_typed = any(isinstance(value, bool | float) for value in values)
    is_repeated = len(set(values)) < len(values)
    if names is None or len(values) != len(names):
        if not is_typed and not is_repeated:
            return None  # class numbers
        expected = "no names" if names is None else f"{len(names)} names"
        problem = f"{len(values)} flags of 0 and 1 have {expected} in task.labels"
        return LabelSet((), problem, "name every label in task.labels, in order")
    if not is_typed and not is_repeated:
        if not are_class_numbers(names):
            return None
        return LabelSet((), f"{values} may be flags or class numbers", FLAGS_FIX)
    return LabelSet(tuple(name for name, value in zip(names, values, strict=True) if value))

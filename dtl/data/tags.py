"""Tags of words: their faults and their order."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from dtl.core.errors import DtlError, Fault, near
from dtl.data.label_values import (
    CLASS_NUMBER,
    are_class_numbers,
    is_missing,
    label_text,
    parse_list,
)

if TYPE_CHECKING:
    from dtl.data.sources.rows import Row

OUTSIDE = "O"
IOB_TAG = re.compile(r"O|[BI]-.+")


def find_list_fault(row: Row, column: str) -> Fault | None:
    """Return the fault of a column that is missing or is not a list; None: there is none."""
    value = parse_list(row.fields.get(column))
    if isinstance(value, list):
        return None
    return Fault(
        row.location,
        f"the column `{column}` is missing (the row has {', '.join(map(repr, row.fields))})"
        if value is None
        else f"`{column}` is {type(value).__name__} ({str(value)[:40]!r}), not a list",
        f"give lists, or map the column in data.columns: {{{column}: ...}}",
    )


def read_list(row: Row, column: str) -> list[Any]:
    """Return the list in a column of a valid row; also one that a CSV file has as text."""
    values = parse_list(row.fields[column])
    assert isinstance(values, list), "find_list_fault found no fault"
    return values


def find_tag_fault(
    row: Row, tag: object, names: Sequence[str] | None, *, also: Collection[str] = ()
) -> Fault | None:
    """Return the fault of a tag, or None: it is missing, is no text and no class number, or is not
    known. `names`: task.labels, to which class numbers refer. `also`: further known tags."""
    text = label_text(tag)
    if names is not None and text in names:
        return None
    is_integer = CLASS_NUMBER.fullmatch(text) is not None
    if is_missing(tag):
        fix = "give each word a tag, O outside of entities, or leave the row out"
        return Fault(row.location, f"a tag is missing ({tag!r})", fix)
    if not isinstance(tag, str) and (isinstance(tag, bool) or not re.fullmatch(r"-?\d+", text)):
        return Fault(row.location, f"the tag {tag!r} is not text", "give strings")
    is_number = is_integer or not isinstance(tag, str)
    if is_number and (names is None or are_class_numbers(names)):
        if names is not None and is_integer and int(text) < len(names):
            return None
        problem = "has no name" if names is None else f"exceeds the {len(names)} task.labels"
        return Fault(
            row.location,
            f"the class number {text} {problem}",
            "list the names in order in task.labels, such as [O, B-PER, I-PER]",
        )
    return None if names is None else find_unknown_tag_fault(row, text, [*names, *also])


def find_unknown_tag_fault(row: Row, tag: str, known: Collection[str]) -> Fault | None:
    """Return the fault of a tag that is not one of `known`; None: there is none."""
    if tag in known:
        return None
    hint = near(tag, known) or "the tags are " + ", ".join(known)
    return Fault(
        row.location,
        f"the tag {tag!r} is not among those of the training rows or of task.labels ({hint})",
        "correct the row, or list every tag in task.labels",
    )


def check_tag_scheme(first_seen: dict[str, str]) -> None:
    """Raise DtlError where only some tags are O, B-name or I-name.

    None may be, as for parts of speech. `first_seen`: the location of each tag.
    """
    others = [tag for tag in first_seen if not IOB_TAG.fullmatch(tag)]
    if others and len(others) < len(first_seen):
        raise DtlError.of(
            first_seen[others[0]],
            f"the tag {others[0]!r} is not O, B-name or I-name, but other tags are",
            "mark the first word of an entity with B- and the others with I-",
        )


def to_inside(tag: str) -> str:
    """Return I-name for B-name; other tags are unchanged."""
    return f"I-{tag[2:]}" if tag.startswith("B-") else tag


def tag_sort_key(tag: str) -> tuple[bool, str, str]:
    """Return the sort key of a tag: O first, then B-LOC, I-LOC, B-PER, ..."""
    is_entity = IOB_TAG.fullmatch(tag) is not None and tag != OUTSIDE
    return (tag != OUTSIDE, tag[2:] if is_entity else tag, tag)

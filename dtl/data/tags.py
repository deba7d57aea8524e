"""Tags of words: their faults and their order."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING

from dtl.core.errors import DtlError, Fault, near

if TYPE_CHECKING:
    from dtl.data.sources.rows import Row

OUTSIDE = "O"
IOB_TAG = re.compile(r"O|[BI]-.+")


def find_list_fault(row: Row, column: str) -> Fault | None:
    """Return the fault of a column that is missing or is not a list; None: there is none."""
    value = row.fields.get(column)
    if isinstance(value, list):
        return None
    return Fault(
        row.location,
        f"the column `{column}` is missing (the row has {', '.join(map(repr, row.fields))})"
        if value is None
        else f"`{column}` is {type(value).__name__} ({str(value)[:40]!r}), not a list",
        f"give lists, or map the column in data.columns: {{{column}: ...}}",
    )


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

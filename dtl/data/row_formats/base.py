"""Row formats, and what a task reads of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from dtl.data.sources.results import Fields

# What a task reads: a chat or prompt with its completion; a prompt with two responses; a prompt
# with one response that is labeled true (desirable) or false.
RowKind = Literal["chat", "pair", "labeled"]


@dataclass(frozen=True)
class RowInput:
    """What a task reads of rows. `media`: the column (audio or image) that may name a file; `kind`:
    the kind of rows, into which other formats are converted."""

    media: str | None = None
    kind: RowKind | None = None


NO_INPUT = RowInput()


@dataclass(frozen=True)
class RowFormat:
    """A format of rows.

    `label`: its name for people. `convert`: for each kind of rows that it can hold, the function
    that gives the columns of the task, or raises RowFormatError. `matches`: whether a row has this
    format.
    """

    name: str
    label: str
    convert: dict[RowKind, Callable[[Fields], Fields]]
    matches: Callable[[Fields], bool]

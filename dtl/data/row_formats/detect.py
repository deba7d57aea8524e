"""Chooses the format of a source's rows, and converts them."""

from __future__ import annotations

from dataclasses import dataclass

from dtl.config.schema.data_files import ROW_FORMAT_NAMES
from dtl.core.errors import DtlError, Fault
from dtl.data.row_formats import alpaca, openai, preferences, sharegpt, trl
from dtl.data.row_formats.base import RowFormat, RowKind
from dtl.data.row_formats.values import RowFormatError, is_messages
from dtl.data.sources.results import Fields

# In the order in which they are tried.
ROW_FORMATS = (
    openai.CHAT,
    openai.PREFERENCE,
    trl.FORMAT,
    trl.KTO,
    preferences.ULTRAFEEDBACK,
    preferences.HH,
    sharegpt.FORMAT,
    alpaca.FORMAT,
    preferences.IMPLICIT_PROMPT,
)
OWN_COLUMNS = "columns"  # the name of a task's own columns
assert {each.name for each in ROW_FORMATS} | {OWN_COLUMNS} == set(ROW_FORMAT_NAMES)
KIND_NAMES = {
    "chat": "chats",
    "pair": "pairs of responses",
    "labeled": "labeled responses",
}


@dataclass(frozen=True)
class RowConverter:
    """Converts the rows of a source, all from one format into the columns of one kind."""

    format: RowFormat
    kind: RowKind

    def convert(self, fields: Fields, location: str) -> Fields | Fault:
        """Return the fields as columns that the task reads, or the fault of the row."""
        try:
            return self.format.convert[self.kind](fields)
        except RowFormatError as error:
            problem = f"{error.problem} (the rows are read as {self.format.label})"
            return Fault(location, problem, error.fix)


def find_converter(
    fields: Fields, kind: RowKind | None, named: str | None, location: str
) -> RowConverter | None:
    """Return the converter for the rows of a source; None: its columns are those of the task.

    `fields`: of its first row. `kind`: what the task reads; None: nothing that has a format.
    `named`: the format in the config, at the key `location`. Raises DtlError for a format that the
    task does not read.
    """
    if named == OWN_COLUMNS:
        return None
    if named is not None:
        row_format = next(each for each in ROW_FORMATS if each.name == named)
        if kind is None or kind not in row_format.convert:
            raise DtlError.of(
                location,
                f"the task does not read rows in {row_format.label} format",
                "remove the key, or use another task",
            )
        return RowConverter(row_format, kind)
    if kind is None or _has_own_columns(fields, kind):
        return None
    return next(
        (
            RowConverter(each, kind)
            for each in ROW_FORMATS
            if kind in each.convert and each.matches(fields)
        ),
        None,
    )


def _has_own_columns(fields: Fields, kind: RowKind) -> bool:
    """Return whether a chat has the columns of the task, beside which others do not count."""
    if kind != "chat":
        return False
    has_texts = all(isinstance(fields.get(name), str) for name in trl.COMPLETION)
    is_chat = is_messages(fields.get("messages"), "role", "content")
    return (has_texts and not trl.FORMAT.matches(fields)) or (
        is_chat and not openai.CHAT.matches(fields)
    )

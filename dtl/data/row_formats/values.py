"""Nested values of rows, as JSON, Parquet, Arrow and CSV carry them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dtl.data.label_values import NO_TEXTS
from dtl.data.nested_text import parse_text
from dtl.data.sources.results import Fields

Message = dict[str, Any]
TRUE_TEXTS = ("true", "1", "1.0", "yes", "desirable")
FALSE_TEXTS = ("false", "0", "0.0", "no", "undesirable")


class RowFormatError(ValueError):
    """A row that is not in the format of its source. `problem`, `fix`: as a Fault has them."""

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(problem)
        self.problem, self.fix = problem, fix


def without_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that are set: a table has each key of any row in all rows."""
    return {name: value for name, value in values.items() if value is not None}


def get_text(fields: Fields, column: str) -> str:
    """Return the text of a column, "" for one that is missing or null. Raises RowFormatError."""
    value = fields.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowFormatError(f"`{column}` is {type(value).__name__}, not text", "give a string")
    if value.strip() in NO_TEXTS:
        raise RowFormatError(
            f"`{column}` is {value!r}, which a program wrote for no text", "write an empty text"
        )
    return value


def require_text(fields: Fields, column: str) -> str:
    """Return the text of a column. Raises RowFormatError for one that is missing or null."""
    if fields.get(column) is None:
        raise RowFormatError(f"`{column}` is missing", f"give each row a text in `{column}`")
    return get_text(fields, column)


def get_list(fields: Fields, column: str) -> list[Any]:
    """Return the list of a column, [] for one that is missing, null or an empty text."""
    value = parse_text(fields.get(column))
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    if not isinstance(value, list):
        raise RowFormatError(
            f"`{column}` is {type(value).__name__}, not a list", "give a list, or its JSON text"
        )
    return value


def is_messages(value: Any, *keys: str) -> bool:
    """Return whether a value is a list of objects that all have these keys, at least one."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and all(key in item for key in keys) for item in value)
    )


def get_judgment(fields: Fields, *columns: str) -> bool:
    """Return whether a response is desirable, from the first of these columns that the row has."""
    column = next(name for name in columns if name in fields)
    value = fields[column]
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in TRUE_TEXTS or text in FALSE_TEXTS:
        return text in TRUE_TEXTS
    raise RowFormatError(f"`{column}` is {value!r} (expected true or false)", "give true or false")


def get_tools(fields: Fields) -> list[Any]:
    """Return the tools of a row, each as an object with its type."""
    return [
        {"type": "function", "function": tool}
        if isinstance(tool, dict) and "function" not in tool and "name" in tool
        else tool
        for tool in map(parse_text, get_list(fields, "tools"))
    ]


def replace_columns(fields: Fields, read: tuple[str, ...], **columns: Any) -> Fields:
    """Return the fields without the columns that were read, and with new ones."""
    return {name: value for name, value in fields.items() if name not in read} | columns

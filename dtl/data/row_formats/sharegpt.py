"""ShareGPT: `conversations` of messages with `from` and `value`, `system` and `tools`."""

from __future__ import annotations

from typing import Any

from dtl.data.nested_text import parse_text
from dtl.data.row_formats.base import RowFormat
from dtl.data.row_formats.values import (
    Message,
    RowFormatError,
    get_judgment,
    get_list,
    get_text,
    get_tools,
    is_messages,
    replace_columns,
    without_nulls,
)
from dtl.data.sources.results import Fields

COLUMNS = ("conversations", "conversation", "messages")
ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot"), "assistant"),
    "system": "system",
    **dict.fromkeys(("tool", "observation", "function_response", "tool_response"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
}


def _matches(fields: Fields) -> bool:
    column = _find_column(fields)
    return column is not None


def _find_column(fields: Fields) -> str | None:
    """Return the column with the messages; `messages` only if they have `from` and `value`."""
    for column in COLUMNS:
        value = parse_text(fields.get(column))
        is_own = column == "messages" and not is_messages(value, "from", "value")
        if (is_messages(value) or value == []) and not is_own:
            return column
    return None


def to_chat(fields: Fields) -> Fields:
    """Return the row with the columns `messages` and `tools`."""
    column, messages = _read_messages(fields)
    return _replace(fields, (column,), messages=messages)


def to_pair(fields: Fields) -> Fields:
    """Return the row with the columns `prompt`, `chosen` and `rejected`."""
    column, messages = _read_messages(fields)
    responses = {name: _read_response(fields, name) for name in ("chosen", "rejected")}
    return _replace(fields, (column,), prompt=messages, **responses)


def to_labeled(fields: Fields) -> Fields:
    """Return the row with the columns `prompt`, `completion` and `label`."""
    column, messages = _read_messages(fields)
    return _replace(
        fields,
        (column, "kto_tag"),
        prompt=messages[:-1],
        completion=messages[-1:],
        label=get_judgment(fields, "kto_tag", "label"),
    )


def _replace(fields: Fields, read: tuple[str, ...], **columns: Any) -> Fields:
    if tools := get_tools(fields):
        columns["tools"] = tools
    return replace_columns(fields, (*read, "system", "tools"), **columns)


def _read_messages(fields: Fields) -> tuple[str, list[Message]]:
    column = _find_column(fields) or COLUMNS[0]
    if column not in fields:
        raise RowFormatError(f"`{column}` is missing", "give each row its messages")
    messages = [_read_message(parse_text(item)) for item in get_list(fields, column)]
    if system := get_text(fields, "system"):
        messages.insert(0, {"role": "system", "content": system})
    return column, messages


def _read_response(fields: Fields, column: str) -> list[Message]:
    value = parse_text(fields.get(column))
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    items = [value] if isinstance(value, dict) else get_list(fields, column)
    return [_read_message(item) for item in items]


def _read_message(item: Any) -> Message:
    if not isinstance(item, dict):
        raise RowFormatError(
            f"a message is {type(item).__name__}, not an object",
            'write {"from": ..., "value": ...}',
        )
    values = without_nulls(item)
    name = values.pop("from", None) or values.pop("role", None)
    role = ROLES.get(str(name).strip().lower())
    if role is None:
        raise RowFormatError(
            f"a message is from {name!r} (expected one of {', '.join(ROLES)})",
            "rename the speaker",
        )
    content = values.pop("value", values.pop("content", ""))
    if role == "call":
        return {"role": "assistant", "content": "", "tool_calls": _read_calls(content), **values}
    return {"role": role, "content": content, **values}


def _read_calls(value: Any) -> list[dict[str, Any]]:
    """Return the tool calls of a message that is a call, or a list of calls."""
    parsed = parse_text(value)
    calls = parsed if isinstance(parsed, list) else [parsed]
    if not is_messages(calls, "name"):
        raise RowFormatError(
            f"a function call is {str(value)[:40]!r}, not an object with name and arguments",
            'write {"name": ..., "arguments": {...}}',
        )
    return [
        {
            "type": "function",
            "function": {
                "name": call["name"],
                "arguments": parse_text(call.get("arguments", call.get("parameters")) or {}),
            },
        }
        for call in calls
    ]


FORMAT = RowFormat(
    "sharegpt", "ShareGPT", {"chat": to_chat, "pair": to_pair, "labeled": to_labeled}, _matches
)

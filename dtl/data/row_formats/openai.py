"""OpenAI's fine-tuning files: older chats, with functions or a column `system`; preferences."""

from __future__ import annotations

from typing import Any

from dtl.data.nested_text import parse_text
from dtl.data.row_formats.base import RowFormat
from dtl.data.row_formats.values import (
    Message,
    RowFormatError,
    get_list,
    get_text,
    get_tools,
    is_messages,
    replace_columns,
    without_nulls,
)
from dtl.data.sources.results import Fields

ROLES = {"developer": "system", "function": "tool"}
PREFERENCE_COLUMNS = ("input", "preferred_output", "non_preferred_output")


def _is_older_chat(fields: Fields) -> bool:
    """Return whether a chat has functions, a column `system`, or roles unknown to templates."""
    messages = parse_text(fields.get("messages"))
    if not is_messages(messages, "role"):
        return False
    has_system = isinstance(fields.get("system"), str)
    return (
        has_system
        or "functions" in fields
        or any(message["role"] in ROLES or message.get("function_call") for message in messages)
    )


def to_chat(fields: Fields) -> Fields:
    """Return the row with `messages` and `tools` as the current interface has them."""
    messages = [_read_message(item) for item in get_list(fields, "messages")]
    if system := get_text(fields, "system"):
        if messages and messages[0]["role"] == "system":
            raise RowFormatError("`system` stands beside a system message", "remove one of them")
        messages.insert(0, {"role": "system", "content": system})
    columns: dict[str, Any] = {"messages": messages}
    if tools := get_tools({"tools": fields.get("functions")}) or get_tools(fields):
        columns["tools"] = tools
    return replace_columns(
        fields, ("messages", "system", "functions", "function_call", "tools"), **columns
    )


def _read_message(item: Any) -> Message:
    if not isinstance(item, dict) or "role" not in item:
        raise RowFormatError("a message has no role", "give each message role and content")
    message = without_nulls(item)
    message["role"] = ROLES.get(message["role"], message["role"])
    if call := parse_text(message.pop("function_call", None)):
        message.setdefault("content", "")
        message["tool_calls"] = [{"type": "function", "function": call}]
    return message


def to_pair(fields: Fields) -> Fields:
    """Return the row with the columns `prompt`, `chosen`, `rejected` and `tools`."""
    given = parse_text(fields.get("input"))
    if not isinstance(given, dict):
        raise RowFormatError("`input` is no object with messages", 'write {"messages": [...]}')
    columns: dict[str, Any] = {"prompt": [_read_message(m) for m in get_list(given, "messages")]}
    for name, column in zip(("chosen", "rejected"), PREFERENCE_COLUMNS[1:], strict=True):
        columns[name] = [_read_message(message) for message in get_list(fields, column)]
    if tools := get_tools(given):
        columns["tools"] = tools
    return replace_columns(fields, PREFERENCE_COLUMNS, **columns)


CHAT = RowFormat("openai", "OpenAI chat", {"chat": to_chat}, _is_older_chat)
PREFERENCE = RowFormat(
    "openai_preference",
    "OpenAI preference",
    {"pair": to_pair},
    lambda fields: all(column in fields for column in PREFERENCE_COLUMNS),
)

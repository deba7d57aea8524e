"""Chat messages of a row in one form, whatever file they were read from, and their faults."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dtl.core.errors import Fault
from dtl.data.nested_text import parse_text

if TYPE_CHECKING:
    from dtl.data.sources.rows import Row

Message = dict[str, Any]  # role, content, and further keys that a template uses

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
# Of a message: whether it is trained on, as OpenAI, Axolotl and ms-swift name it; no template reads
# them.
WEIGHT_KEYS = ("weight", "train", "training", "loss")
TOOLS, DOCUMENTS, TEMPLATE_OPTIONS = "tools", "documents", "chat_template_kwargs"
CHAT_COLUMNS = (TOOLS, DOCUMENTS, TEMPLATE_OPTIONS)  # read beside the messages
EXPECTED_MESSAGES = (
    'write [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
)


@dataclass(frozen=True)
class Chat:
    """What a template renders. `options`: further variables of the template."""

    messages: list[Message]
    tools: list[Any] | None = None
    documents: list[Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def first(self, count: int) -> Chat:
        """Return the chat without what follows its first `count` messages, except the messages
        through the next one of the user: no answer becomes the last one, which templates may render
        differently."""
        following = range(count, len(self.messages))
        users = (index for index in following if self.messages[index].get("role") == "user")
        end = next(users, len(self.messages)) + 1
        return self if end >= len(self.messages) else replace(self, messages=self.messages[:end])


def read_chat(row: Row, messages: Any = None) -> Chat:
    """Return the chat of a row in one form; `messages`: instead of those of the row."""
    fields = row.fields
    found = normalize_messages(fields.get("messages") if messages is None else messages)
    options = drop_nulls(parse_text(fields.get(TEMPLATE_OPTIONS)))
    return Chat(
        found,
        tools=_normalize_tools(fields.get(TOOLS)),
        documents=_as_list(fields.get(DOCUMENTS)),
        options=options if isinstance(options, dict) else {},
    )


def normalize_messages(value: Any) -> Any:
    """Return messages in the one form that templates read; another value as it is.

    A column may hold them as JSON text. In tables, each message has the keys of all messages; a
    null is a missing key. Arguments of a call are an object, also where they were JSON text.
    """
    messages = parse_text(value)
    if not isinstance(messages, list):
        return messages
    return [_normalize_message(drop_nulls(parse_text(message))) for message in messages]


def parse_messages(value: Any) -> Any:
    """Return messages in one form, also where a text holds them; a text without, and any other
    value, as it is."""
    parsed = parse_text(value)
    if isinstance(value, str) and not _has_roles(parsed):
        return value
    return normalize_messages(parsed)


def with_parsed_messages(row: Row, columns: Iterable[str]) -> Row:
    """Return a row whose columns have messages in one form where they have messages."""
    found = {name: parse_messages(row.fields[name]) for name in columns if name in row.fields}
    return replace(row, fields={**row.fields, **found})


def _has_roles(value: Any) -> bool:
    return isinstance(value, list) and any(
        isinstance(message, dict) and "role" in message for message in map(parse_text, value)
    )


def drop_nulls(value: Any) -> Any:
    """Return the value without the keys that are null, at every depth; Arrow maps as objects."""
    if isinstance(value, dict):
        return {key: drop_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        if value and all(isinstance(item, tuple) and len(item) == 2 for item in value):
            return drop_nulls(dict(value))
        return [drop_nulls(item) for item in value]
    return value


def is_message_list(value: Any) -> bool:
    """Return whether a template can read the value: a list of at least one message."""
    if not isinstance(value, list) or not value:
        return False
    return not any(_find_faults(normalize_messages(value)))


def find_messages_fault(row: Row, column: str) -> Fault | None:
    """Return the fault of a column that is not a list of chat messages, or None."""
    messages = normalize_messages(row.fields[column])
    if isinstance(messages, list) and messages:
        reason = next(_find_faults(messages), None)
        if reason is None:
            return None
    else:
        reason = "it is empty" if messages == [] else f"it is {type(messages).__name__}"
    problem = f"`{column}` is not a list of chat messages ({reason})"
    return Fault(row.location, problem, EXPECTED_MESSAGES)


def find_chat_fault(row: Row) -> Fault | None:
    """Return the fault of the messages of a row, or of what stands beside them, or None."""
    if fault := find_messages_fault(row, "messages"):
        return fault
    for column, form in (
        (TOOLS, 'a list of functions, such as [{"type": "function", "function": {...}}]'),
        (DOCUMENTS, 'a list of documents, such as [{"title": "...", "text": "..."}]'),
        (TEMPLATE_OPTIONS, 'an object, such as {"enable_thinking": false}'),
    ):
        value = parse_text(row.fields.get(column))
        kind = dict if column == TEMPLATE_OPTIONS else list
        if value not in (None, "") and not isinstance(value, kind):
            return Fault(
                row.location,
                f"`{column}` is {type(value).__name__} ({str(value)[:40]!r})",
                f"write {form}, also as JSON text, or rename the column",
            )
    return None


def assistant_indices(messages: Sequence[Message]) -> list[int]:
    """Return the indices of the assistant's messages."""
    return [index for index, message in enumerate(messages) if message["role"] == "assistant"]


def supervised_indices(messages: Sequence[Message]) -> list[int]:
    """Return the indices of the assistant's messages without `weight: 0` or `train: false`."""
    return [
        index
        for index in assistant_indices(messages)
        if all(messages[index].get(key, 1) for key in WEIGHT_KEYS)
    ]


def _normalize_message(message: Any) -> Any:
    """Return a message with its calls as objects; an empty list of calls is left out."""
    if not isinstance(message, dict):
        return message
    made = {key: value for key, value in message.items() if key != "tool_calls"}
    calls = _as_list(message.get("tool_calls"))
    if calls:
        made["tool_calls"] = [_normalize_call(call) for call in calls]
    return made


def _normalize_call(call: Any) -> Any:
    """Return a call as {type, function: {name, arguments}}, its arguments an object."""
    call = parse_text(call)
    if not isinstance(call, dict):
        return call
    if "function" not in call and "name" in call:
        call = {
            **{key: value for key, value in call.items() if key not in ("name", "arguments")},
            "function": {key: call[key] for key in ("name", "arguments") if key in call},
        }
    function = parse_text(call.get("function"))
    if not isinstance(function, dict):
        return call
    arguments = parse_text(function.get("arguments"))
    function = {**function, "arguments": {} if arguments in (None, "", []) else arguments}
    return {"type": "function", **call, "function": function}


def _normalize_tools(value: Any) -> list[Any] | None:
    """Return the tools as {type, function}; None where there is none."""
    tools = _as_list(value)
    if not tools:
        return None
    made = []
    for tool in tools:
        is_bare = isinstance(tool, dict) and "function" not in tool and "name" in tool
        is_bare = is_bare and tool.get("type", "function") == "function"
        if is_bare:
            function = {key: item for key, item in tool.items() if key != "type"}
            tool = {"type": "function", "function": function}
        made.append(tool)
    return made


def _as_list(value: Any) -> list[Any] | None:
    """Return a list of objects without nulls, also where it, or its items, are JSON text."""
    items = parse_text(value)
    if not isinstance(items, list):
        return None
    return [drop_nulls(parse_text(item)) for item in items if item is not None]


def _find_faults(messages: list[Any]) -> Iterator[str]:
    for number, message in enumerate(messages, start=1):
        if reason := _find_message_fault(message):
            yield f"message {number}: {reason}"


def _find_message_fault(message: Any) -> str | None:
    if not isinstance(message, dict):
        return "not an object"
    if not isinstance(message.get("role"), str):
        return "no role"
    calls = message.get("tool_calls")
    if calls and not all(map(_is_call, calls)):
        return "a tool call without the name of its function"
    content = message.get("content")
    if content is None and not calls and not any(map(message.get, REASONING_KEYS)):
        return "no content and no tool call" if message["role"] == "assistant" else "no content"
    if isinstance(content, list):
        kinds = [part.get("type") for part in content if isinstance(part, dict)]
        if len(kinds) < len(content) or not all(isinstance(p.get("text"), str) for p in content):
            return f"a part of the content is not text ({', '.join(map(str, kinds)) or 'no type'})"
    elif not isinstance(content, str | type(None)):
        return f"content is {type(content).__name__}"
    weights = [message[key] for key in WEIGHT_KEYS if key in message]
    if any(weight not in (0, 1) for weight in weights):
        return f"its weight is {weights[0]!r}, not 0 or 1"
    return None


def _is_call(call: Any) -> bool:
    function = call.get("function") if isinstance(call, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str)

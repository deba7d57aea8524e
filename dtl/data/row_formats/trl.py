"""TRL's conversational rows, also where a table carries their messages as texts; KTO rows."""

from __future__ import annotations

from typing import Any

from dtl.data.nested_text import parse_text
from dtl.data.row_formats.base import RowFormat
from dtl.data.row_formats.values import (
    Message,
    get_judgment,
    is_messages,
    replace_columns,
)
from dtl.data.sources.results import Fields

PAIR = ("prompt", "chosen", "rejected")
COMPLETION = ("prompt", "completion")


def _as_messages(value: Any) -> Any:
    """Return the messages that a text holds; other values are unchanged."""
    parsed = parse_text(value)
    return parsed if is_messages(parsed, "role") else value


def _is_prompt_completion(fields: Fields) -> bool:
    return all(is_messages(_as_messages(fields.get(name)), "role") for name in COMPLETION)


def to_chat(fields: Fields) -> Fields:
    """Return the row with the column `messages`, in which only the completion is learned."""
    prompt, completion = (_as_messages(fields.get(name)) for name in COMPLETION)
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    return replace_columns(
        fields, COMPLETION, messages=[*map(_without_weight, prompt or ()), *(completion or ())]
    )


def _without_weight(message: Message) -> Message:
    return {**message, "weight": 0} if message["role"] == "assistant" else message


def _has_messages_as_text(fields: Fields) -> bool:
    values = [fields.get(name) for name in PAIR]
    return any(isinstance(value, str) and _as_messages(value) is not value for value in values)


def to_pair(fields: Fields) -> Fields:
    """Return the row with messages in `prompt`, `chosen` and `rejected`."""
    return fields | {name: _as_messages(fields[name]) for name in PAIR if name in fields}


def _is_labeled(fields: Fields) -> bool:
    has_own_form = isinstance(fields.get("label"), bool) and not _has_messages_as_text(
        {"prompt": fields.get("prompt"), "chosen": fields.get("completion")}
    )
    has_judgment = "kto_tag" in fields or fields.get("label") is not None
    return all(fields.get(name) is not None for name in COMPLETION) and (
        has_judgment and not has_own_form
    )


def to_labeled(fields: Fields) -> Fields:
    """Return the row with messages in `prompt` and `completion`, and `label` as true or false."""
    columns = {name: _as_messages(fields[name]) for name in COMPLETION if name in fields}
    label = get_judgment(fields, "kto_tag", "label")
    return replace_columns(fields, ("kto_tag",), **columns, label=label)


FORMAT = RowFormat(
    "trl",
    "TRL conversational",
    {"chat": to_chat, "pair": to_pair},
    lambda fields: _is_prompt_completion(fields) or _has_messages_as_text(fields),
)
KTO = RowFormat("kto", "KTO", {"labeled": to_labeled}, _is_labeled)

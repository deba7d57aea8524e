"""Alpaca, Dolly, OpenOrca: `instruction`, `input` and `output`, with `system` and `history`."""

from __future__ import annotations

from typing import Any

from dtl.data.row_formats.base import RowFormat
from dtl.data.row_formats.values import (
    Message,
    RowFormatError,
    get_judgment,
    get_list,
    get_text,
    get_tools,
    replace_columns,
    require_text,
)
from dtl.data.sources.results import Fields

# The names that Alpaca, Dolly and OpenOrca have.
INSTRUCTIONS, SYSTEMS = ("instruction", "question", "query"), ("system", "system_prompt")
INPUTS, OUTPUTS = ("input", "context"), ("output", "response", "answer")
RESPONSES = ("chosen", "rejected")
READ = (*INPUTS, *OUTPUTS, *SYSTEMS, "history", "tools")


def _matches(fields: Fields) -> bool:
    """Return whether a row has an instruction; under another name, only with an answer to it."""
    if isinstance(fields.get("instruction"), str):
        return "completions" not in fields
    if fields.get("prompt") or "text" in fields:  # columns that the tasks read
        return False
    has_answer = _first(fields, OUTPUTS) is not None or set(RESPONSES) <= set(fields)
    column = _first(fields, INSTRUCTIONS)
    return has_answer and column is not None and isinstance(fields[column], str)


def to_chat(fields: Fields) -> Fields:
    """Return the row with the columns `messages` and `tools`.

    A row without an output, as `dtl predict` may have it, ends with the user's message.
    """
    messages = _read_prompt(fields)
    column = _first(fields, OUTPUTS)
    if column is not None:
        messages.append({"role": "assistant", "content": require_text(fields, column)})
    return _replace(fields, (), messages=messages)


def to_pair(fields: Fields) -> Fields:
    """Return the row with the columns `prompt`, `chosen` and `rejected`."""
    responses = {
        name: [{"role": "assistant", "content": require_text(fields, name)}] for name in RESPONSES
    }
    return _replace(fields, (), prompt=_read_prompt(fields), **responses)


def to_labeled(fields: Fields) -> Fields:
    """Return the row with the columns `prompt`, `completion` and `label`."""
    output = require_text(fields, _first(fields, OUTPUTS) or OUTPUTS[0])
    return _replace(
        fields,
        ("kto_tag",),
        prompt=_read_prompt(fields),
        completion=[{"role": "assistant", "content": output}],
        label=get_judgment(fields, "kto_tag", "label"),
    )


def _replace(fields: Fields, read: tuple[str, ...], **columns: Any) -> Fields:
    if tools := get_tools(fields):
        columns["tools"] = tools
    column = _first(fields, INSTRUCTIONS) or INSTRUCTIONS[0]
    return replace_columns(fields, (*READ, column, *read), **columns)


def _read_prompt(fields: Fields) -> list[Message]:
    """Return the messages before the output: the user's last one is instruction and input."""
    messages: list[Message] = []
    if system := get_text(fields, _first(fields, SYSTEMS) or SYSTEMS[0]):
        messages.append({"role": "system", "content": system})
    for exchange in get_list(fields, "history"):
        if not isinstance(exchange, list) or len(exchange) != 2:
            raise RowFormatError(
                f"`history` has {str(exchange)[:40]!r}, not a pair of texts",
                "write [[instruction, output], ...]",
            )
        messages += [
            {"role": role, "content": content}
            for role, content in zip(("user", "assistant"), exchange, strict=True)
        ]
    column = _first(fields, INPUTS)
    instruction = require_text(fields, _first(fields, INSTRUCTIONS) or INSTRUCTIONS[0])
    texts = [instruction, get_text(fields, column) if column else ""]
    return [*messages, {"role": "user", "content": "\n".join(filter(None, texts))}]


def _first(fields: Fields, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in fields), None)


FORMAT = RowFormat(
    "alpaca", "Alpaca", {"chat": to_chat, "pair": to_pair, "labeled": to_labeled}, _matches
)

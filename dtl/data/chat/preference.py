"""Preference pairs of chats: the messages of a prompt and of its two responses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dtl.core.errors import Fault
from dtl.data.chat.render import Message, find_messages_fault, is_message_list
from dtl.data.modalities.text import find_text_fault

if TYPE_CHECKING:
    from dtl.data.sources.rows import Row

RESPONSES = ("chosen", "rejected")
COLUMNS = ("prompt", *RESPONSES)


@dataclass(frozen=True)
class PreferenceMessages:
    """A pair as messages: the prompt of both responses, and each response."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]


def preference_messages(row: Row) -> PreferenceMessages | None:
    """Return the row as messages; None where it holds texts.

    It has the messages of `prompt` and two responses, or two conversations, whose common
    beginning is the prompt.
    """
    prompt, chosen, rejected = (row.fields.get(column) for column in COLUMNS)
    if is_message_list(prompt):
        return PreferenceMessages(
            list(prompt),  # type: ignore[call-overload]
            _messages_after(prompt, chosen),
            _messages_after(prompt, rejected),
        )
    if not (is_message_list(chosen) and is_message_list(rejected)):
        return None
    chosen, rejected = list(chosen), list(rejected)  # type: ignore[call-overload]
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    return PreferenceMessages(chosen[:shared], chosen[shared:], rejected[shared:])


def _messages_after(prompt: Any, response: Any) -> list[Message]:
    """Return the messages of a response alone; it may be a text, or repeat the prompt."""
    if isinstance(response, str):
        return [{"role": "assistant", "content": response}]
    return list(response[len(prompt) :] if response[: len(prompt)] == prompt else response)


def find_preference_fault(row: Row) -> Fault | None:
    """Return what is wrong with a row's prompt and responses; None: nothing."""
    is_without_prompt = row.fields.get("prompt") is None
    has_conversations = is_without_prompt and all(
        is_message_list(row.fields.get(n)) for n in RESPONSES
    )
    for name in RESPONSES if has_conversations else COLUMNS:
        has_messages = isinstance(row.fields.get(name), list)
        if fault := find_messages_fault(row, name) if has_messages else find_text_fault(row, name):
            return fault
    return _find_responses_fault(row)


def _find_responses_fault(row: Row) -> Fault | None:
    """Return the fault of the responses of a row whose columns are each a text or messages."""
    messages = preference_messages(row)
    if messages is None:
        mixed = [name for name in RESPONSES if isinstance(row.fields[name], list)]
        if not mixed:
            return None
        return Fault(
            row.location,
            f"of the two responses, only `{mixed[0]}` has messages",
            "give messages in both, or in `prompt`",
        )
    for name, response in zip(RESPONSES, (messages.chosen, messages.rejected), strict=True):
        roles = [message["role"] for message in response]
        if roles != ["assistant"]:
            return Fault(
                row.location,
                f"after the prompt, `{name}` is not one message of the assistant (it has "
                f"{', '.join(roles) or 'none'})",
                "let the two differ only in their last message, the assistant's",
            )
    return None

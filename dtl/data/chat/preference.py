"""Preference pairs of chats: the turns of a prompt and of its chosen and rejected response."""

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
class PreferenceTurns:
    """A pair as turns: the prompt of both responses, and each response."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]


def preference_turns(row: Row) -> PreferenceTurns | None:
    """Return the row as turns; None where it holds texts.

    It has the turns of `prompt` and two responses, or two conversations, whose common beginning is
    the prompt.
    """
    prompt, chosen, rejected = (row.fields.get(column) for column in COLUMNS)
    if is_message_list(prompt):
        return PreferenceTurns(
            list(prompt),  # type: ignore[call-overload]
            _turns_after(prompt, chosen),
            _turns_after(prompt, rejected),
        )
    if not (is_message_list(chosen) and is_message_list(rejected)):
        return None
    chosen, rejected = list(chosen), list(rejected)  # type: ignore[call-overload]
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    return PreferenceTurns(chosen[:shared], chosen[shared:], rejected[shared:])


def _turns_after(prompt: Any, response: Any) -> list[Message]:
    """Return the turns of a response alone; it may be a text, or repeat the prompt."""
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
        has_turns = isinstance(row.fields.get(name), list)
        if fault := find_messages_fault(row, name) if has_turns else find_text_fault(row, name):
            return fault
    return _find_responses_fault(row)


def _find_responses_fault(row: Row) -> Fault | None:
    """Return the fault of the responses of a row whose columns are each a text or turns."""
    turns = preference_turns(row)
    if turns is None:
        mixed = [name for name in RESPONSES if isinstance(row.fields[name], list)]
        if not mixed:
            return None
        return Fault(
            row.location,
            f"of the two responses, only `{mixed[0]}` has turns",
            "give turns in both, or in `prompt`",
        )
    for name, response in zip(RESPONSES, (turns.chosen, turns.rejected), strict=True):
        roles = [turn["role"] for turn in response]
        if roles != ["assistant"]:
            return Fault(
                row.location,
                f"after the prompt, `{name}` is not one turn of the assistant (it has "
                f"{', '.join(roles) or 'none'})",
                "let the two differ only in their last turn, the assistant's",
            )
    return None

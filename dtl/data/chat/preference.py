"""Preference pairs: a prompt and its two responses, as texts or chat messages, and as tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dtl.core.errors import Fault
from dtl.data.chat.messages import with_parsed_messages
from dtl.data.chat.render import Message, find_messages_fault, is_message_list
from dtl.data.chat.response import (
    ResponseTokenizer,
    TokenizedResponse,
    find_response_messages_fault,
    messages_after,
)
from dtl.data.example import EncodedExample, Skip
from dtl.data.modalities.text import find_text_fault, get_text

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
    row = with_parsed_messages(row, COLUMNS)
    values: list[Any] = [row.fields.get(column) for column in COLUMNS]
    prompt, chosen, rejected = values
    if is_message_list(prompt):
        return PreferenceMessages(
            list(prompt),
            messages_after(prompt, chosen),
            messages_after(prompt, rejected),
        )
    if not (is_message_list(chosen) and is_message_list(rejected)):
        return None
    chosen, rejected = list(chosen), list(rejected)
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    return PreferenceMessages(chosen[:shared], chosen[shared:], rejected[shared:])


def find_preference_fault(row: Row, *, needs_prompt: bool = True) -> Fault | None:
    """Return what is wrong with a row's prompt and responses; None: nothing.

    `needs_prompt`: whether responses that are texts need a prompt.
    """
    row = with_parsed_messages(row, COLUMNS)
    is_without_prompt = row.fields.get("prompt") is None
    has_conversations = is_without_prompt and all(
        is_message_list(row.fields.get(n)) for n in RESPONSES
    )
    has_no_prompt = has_conversations or (is_without_prompt and not needs_prompt)
    for name in RESPONSES if has_no_prompt else COLUMNS:
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
        if fault := find_response_messages_fault(row, name, response):
            return fault
    return None


def preview_pair(row: Row) -> tuple[str, str]:
    """Return a row as text: all of it, and the chosen response."""
    if messages := preference_messages(row):
        every = [messages.prompt, messages.chosen, messages.rejected]
        target = "".join(str(message.get("content") or "") for message in messages.chosen)
        return json.dumps(every, sort_keys=True, default=str), target
    texts = [str(row.fields.get(column) or "") for column in COLUMNS]
    return "\n".join(texts), texts[1]


def encode_pair(row: Row, responses: ResponseTokenizer) -> EncodedExample | Skip:
    """Return both responses, each with the prompt; a pair is one target. A pair that shows no
    preference is skipped."""
    pair = _tokenize_pair(row, responses)
    if isinstance(pair, Skip):
        return pair
    if any(response.start == 0 for response in pair):
        return Skip("no prompt")
    if any(response.is_empty for response in pair):
        return Skip("no response left after truncation")
    if pair[0].tokens == pair[1].tokens:
        return Skip("both responses are the same after truncation")
    values: dict[str, Any] = {
        name: response.tokens for name, response in zip(RESPONSES, pair, strict=True)
    }
    values["prompt"] = [response.start for response in pair]
    length = sum(len(response.tokens) for response in pair)
    return EncodedExample(values, length, 1, *join_notes(pair))


def join_notes(pair: Sequence[TokenizedResponse]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what the template drops of any of the responses, and the notes of all."""
    dropped = dict.fromkeys(name for response in pair for name in response.dropped)
    notes = dict.fromkeys(note for response in pair for note in response.notes)
    return tuple(dropped), tuple(notes)


def pair_token_parts(values: dict[str, Any]) -> list[list[int]]:
    """Return the tokens of the prompt, of the chosen and of the rejected response."""
    starts = dict(zip(RESPONSES, map(int, values["prompt"]), strict=True))
    responses = [list(values[name][start:]) for name, start in starts.items()]
    return [list(values["chosen"][: starts["chosen"]]), *responses]


def _tokenize_pair(row: Row, responses: ResponseTokenizer) -> list[TokenizedResponse] | Skip:
    messages = preference_messages(row)
    if messages is None:
        limit = responses.limit
        prompt, *texts = (get_text(row, name, max_tokens=limit) for name in COLUMNS)
        if texts[0] == texts[1]:
            return Skip("both responses are the same")
        return [responses.tokenize_texts(prompt, text) for text in texts]
    if messages.chosen == messages.rejected:
        return Skip("both responses are the same")
    if not messages.prompt:
        return Skip("no prompt")
    return [
        responses.tokenize_chat(messages.prompt, response, row)
        for response in (messages.chosen, messages.rejected)
    ]

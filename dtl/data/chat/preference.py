"""Preference pairs: a prompt and its two responses, as texts or chat messages, and as tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dtl.core.errors import Fault
from dtl.data.chat.render import ChatTokenizer, Message, find_messages_fault, is_message_list
from dtl.data.example import EncodedExample, Skip
from dtl.data.modalities.text import (
    bos_tokens,
    find_text_fault,
    get_text,
    max_characters,
    tokenize,
)

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


def preview_pair(row: Row) -> tuple[str, str]:
    """Return a row as text: all of it, and the chosen response."""
    if messages := preference_messages(row):
        every = [messages.prompt, messages.chosen, messages.rejected]
        target = "".join(str(message["content"] or "") for message in messages.chosen)
        return json.dumps(every, sort_keys=True, default=str), target
    texts = [str(row.fields[column]) for column in COLUMNS]
    return "\n".join(texts), texts[1]


@dataclass(frozen=True)
class TokenizedResponse:
    """A prompt with a response, as tokens, and the position at which the response starts."""

    tokens: list[int]
    start: int


def encode_pair(row: Row, tokenizer: Any, *, limit: int) -> EncodedExample | Skip:
    """Return both responses, each with the prompt and truncated to `limit` tokens; a pair is one
    target. A pair that shows no preference is skipped."""
    messages = preference_messages(row)
    pair = (
        _pair_of_messages(messages, row, tokenizer, limit=limit)
        if messages
        else _pair_of_texts(row, tokenizer, limit=limit)
    )
    if isinstance(pair, Skip):
        return pair
    if any(response.start >= len(response.tokens) for response in pair):
        return Skip("no response left after truncation")
    if pair[0].tokens == pair[1].tokens:
        return Skip("both responses are the same after truncation")
    values: dict[str, Any] = {
        name: response.tokens for name, response in zip(RESPONSES, pair, strict=True)
    }
    values["prompt"] = [response.start for response in pair]
    return EncodedExample(values, sum(len(response.tokens) for response in pair), 1)


def pair_token_parts(values: dict[str, Any]) -> list[list[int]]:
    """Return the tokens of the prompt, of the chosen and of the rejected response."""
    starts = dict(zip(RESPONSES, map(int, values["prompt"]), strict=True))
    responses = [list(values[name][start:]) for name, start in starts.items()]
    return [list(values["chosen"][: starts["chosen"]]), *responses]


def _pair_of_texts(row: Row, tokenizer: Any, *, limit: int) -> list[TokenizedResponse] | Skip:
    prompt, chosen, rejected = (get_text(row, name, max_tokens=limit) for name in COLUMNS)
    if chosen == rejected:
        return Skip("both responses are the same")
    prompt_tokens = [*bos_tokens(tokenizer), *tokenize(tokenizer, prompt)]
    if not prompt_tokens:
        return Skip("no prompt")
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return [
        TokenizedResponse(
            (prompt_tokens + tokenize(tokenizer, text) + end)[:limit], len(prompt_tokens)
        )
        for text in (chosen, rejected)
    ]


def _pair_of_messages(
    messages: PreferenceMessages, row: Row, tokenizer: Any, *, limit: int
) -> list[TokenizedResponse] | Skip:
    """Return both responses in the model's chat template, up to the end-of-turn token."""
    if messages.chosen == messages.rejected:
        return Skip("both responses are the same")
    if not messages.prompt:
        return Skip("no prompt")
    chat_tokenizer = ChatTokenizer(
        tokenizer,
        max_tokens=limit,
        max_characters=max_characters(limit),
        plain_format="the prompt and its responses as plain texts",
        alternative="give the prompt and its responses as plain texts",
    )
    pair = []
    for response in (messages.chosen, messages.rejected):
        tokens, counted = chat_tokenizer.tokenize(
            [*messages.prompt, *response], row, supervised=[len(messages.prompt)]
        )
        start = counted.index(True) if True in counted else len(tokens)
        pair.append(TokenizedResponse(tokens[: start + sum(counted)], start))
    return pair

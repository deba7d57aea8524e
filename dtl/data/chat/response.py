"""A prompt with one response, as texts or chat messages: its faults, and its tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dtl.core.errors import Fault
from dtl.data.chat.messages import read_chat, with_parsed_messages
from dtl.data.chat.options import ChatOptions
from dtl.data.chat.render import ChatTokenizer, Message, find_messages_fault, is_message_list
from dtl.data.example import Skip
from dtl.data.modalities.special_tokens import as_textual
from dtl.data.modalities.text import find_text_fault, get_text, max_characters, tokenize_texts

if TYPE_CHECKING:
    from dtl.data.sources.rows import Row

RESPONSE_COLUMNS = ("prompt", "completion")


@dataclass(frozen=True)
class TokenizedResponse:
    """A prompt with a response, as tokens, and the position at which the response starts.

    `dropped`: features of the chat that its template does not render; `notes`: what is unusual.
    """

    tokens: list[int]
    start: int
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether nothing of the response is left after truncation."""
        return self.start >= len(self.tokens)


@dataclass(frozen=True)
class ResponseTokenizer:
    """Tokenizes prompts with a response, truncated to `limit` tokens."""

    tokenizer: Any
    options: ChatOptions
    limit: int

    def tokenize_texts(self, prompt: str, response: str) -> TokenizedResponse:
        """Return prompt and response with an end token."""
        tokens = self._tokenize([prompt, response])
        return TokenizedResponse((tokens[0] + tokens[1])[: self.limit], len(tokens[0]))

    def tokenize_joined_text(self, text: str) -> list[int]:
        """Return the tokens of a text with an end token. For models with a head."""
        return self._tokenize([text[: max_characters(self.limit)]])[0][: self.limit]

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        reads_special_tokens = self.options.special_tokens != "text"
        return tokenize_texts(
            self.tokenizer, texts, has_end=True, reads_special_tokens=reads_special_tokens
        )

    def tokenize_chat(
        self, prompt: list[Message], response: list[Message], row: Row
    ) -> TokenizedResponse:
        """Return prompt and response in the model's chat template, up to the end-of-turn token."""
        chat = read_chat(row, [*prompt, *response])
        encoded = self._chat_tokenizer.encode(chat, row, supervised=[len(prompt)])
        tokens, counted = encoded.tokens, encoded.supervised
        start = counted.index(True) if True in counted else len(tokens)
        return TokenizedResponse(
            tokens[: start + sum(counted)], start, encoded.dropped, encoded.notes
        )

    @cached_property
    def _chat_tokenizer(self) -> ChatTokenizer:
        return ChatTokenizer(
            as_textual(self.tokenizer) if self.options.special_tokens == "text" else self.tokenizer,
            max_tokens=self.limit,
            max_characters=max_characters(self.limit),
            plain_format="the prompt and its responses as plain texts",
            options=self.options.chat_template_kwargs,
        )


def messages_after(prompt: Any, response: Any) -> list[Message]:
    """Return the messages of a response alone; it may be a text, or repeat the prompt."""
    if isinstance(response, str):
        return [{"role": "assistant", "content": response}]
    return list(response[len(prompt) :] if response[: len(prompt)] == prompt else response)


def find_response_messages_fault(row: Row, name: str, response: list[Message]) -> Fault | None:
    """Return the fault of the messages after the prompt; None: they are one of the assistant."""
    roles = [message["role"] for message in response]
    if roles == ["assistant"]:
        return None
    return Fault(
        row.location,
        f"after the prompt, `{name}` is not one message of the assistant (it has "
        f"{', '.join(roles) or 'none'})",
        "end the conversation with one message of the assistant",
    )


def find_response_fault(row: Row) -> Fault | None:
    """Return what is wrong with the prompt and the completion of a row; None: nothing."""
    row = with_parsed_messages(row, RESPONSE_COLUMNS)
    completion = row.fields.get("completion")
    is_conversation = row.fields.get("prompt") is None and isinstance(completion, list)
    for name in RESPONSE_COLUMNS[is_conversation:]:
        has_messages = isinstance(row.fields.get(name), list)
        if fault := find_messages_fault(row, name) if has_messages else find_text_fault(row, name):
            return fault
    parts = response_messages(row)
    if parts is not None:
        return find_response_messages_fault(row, "completion", parts[1])
    if isinstance(completion, list):
        return Fault(
            row.location,
            "`completion` has messages and `prompt` a text",
            "give messages in both, or only in `prompt`",
        )
    return None


def preview_response(row: Row) -> tuple[str, str]:
    """Return a row as text: all of it, and the completion."""
    parts = response_messages(row)
    if parts is None:
        texts = [str(row.fields[column]) for column in RESPONSE_COLUMNS]
        return "\n".join(texts), texts[1]
    target = "".join(str(message.get("content") or "") for message in parts[1])
    return json.dumps(parts, sort_keys=True, default=str), target


def tokenize_response(row: Row, responses: ResponseTokenizer) -> TokenizedResponse | Skip:
    """Return the prompt and the completion of a row."""
    parts = response_messages(row)
    if parts is None:
        prompt, text = (
            get_text(row, name, max_tokens=responses.limit) for name in RESPONSE_COLUMNS
        )
        response = responses.tokenize_texts(prompt, text)
    else:
        if not parts[0]:
            return Skip("no prompt")
        response = responses.tokenize_chat(*parts, row)
    if response.start == 0:
        return Skip("no prompt")
    return Skip("no response left after truncation") if response.is_empty else response


def response_messages(row: Row) -> tuple[list[Message], list[Message]] | None:
    """Return the messages of the prompt and of the completion; None where the row holds texts.

    A completion that is a conversation has the prompt before its last message.
    """
    row = with_parsed_messages(row, RESPONSE_COLUMNS)
    prompt, completion = (row.fields.get(column) for column in RESPONSE_COLUMNS)
    if is_message_list(prompt):
        return list(prompt), messages_after(prompt, completion)  # type: ignore[call-overload]
    if prompt is None and is_message_list(completion):
        return list(completion[:-1]), list(completion[-1:])  # type: ignore[index]
    return None

"""Renders and tokenizes chats with the tokenizer's chat template, and locates the targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dtl.core.errors import DtlError, Fault

if TYPE_CHECKING:
    from dtl.data.sources.rows import Row

Message = dict[str, Any]  # role, content, and further keys that a template uses


def is_message_list(value: Any) -> bool:
    """Return whether a template can read the value: a list of at least one message."""
    return isinstance(value, list) and bool(value) and all(map(_is_message, value))


def find_messages_fault(row: Row, column: str) -> Fault | None:
    """Return the fault of a column that is not a list of chat messages, or None."""
    if is_message_list(row.fields[column]):
        return None
    return Fault(
        row.location,
        f"`{column}` is not a list of chat messages",
        'write [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]',
    )


def assistant_indices(messages: Sequence[Message]) -> list[int]:
    """Return the indices of the assistant's messages."""
    return [index for index, message in enumerate(messages) if message["role"] == "assistant"]


@dataclass(frozen=True)
class ChatTokenizer:
    """Tokenizes chats with the chat template of a model's tokenizer.

    Tokens beyond `max_tokens`, and those of text beyond `max_characters`, may be missing. For
    messages: `plain_format`, the data's format without chat messages, and `alternative`, what to do
    if the template cannot be used.
    """

    tokenizer: Any
    max_tokens: int
    max_characters: int
    plain_format: str
    alternative: str

    def tokenize(
        self, messages: list[Message], row: Row, *, supervised: Sequence[int] | None
    ) -> tuple[list[int], list[bool]]:
        """Return the token ids of a chat, and whether each token is supervised.

        `supervised`: indices of the messages whose tokens, with their end-of-turn token, are
        supervised; None: all tokens. Raises DtlError with the location of the row.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            raise DtlError.of(
                row.location,
                "the row has chat messages, but the model's tokenizer has no chat template",
                f"use an instruction-tuned model, or give {self.plain_format}",
            )
        rendered = _apply_template(self.tokenizer, messages, row)
        text = rendered[: self.max_characters]
        if supervised is None:
            token_ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            return token_ids, [True] * len(token_ids)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        offsets = encoded["offset_mapping"][: self.max_tokens]
        spans = self._locate_messages(
            rendered, messages, row, supervised, end=offsets[-1][1] if offsets else 0
        )
        is_supervised = [
            any(start < span_end and end > span_start for span_start, span_end in spans)
            for start, end in offsets
        ]
        return list(encoded["input_ids"][: self.max_tokens]), is_supervised

    def _locate_messages(
        self, rendered: str, messages: list[Message], row: Row, indices: Sequence[int], *, end: int
    ) -> list[tuple[int, int]]:
        """Return the character spans of these messages in the rendered chat, up to `end`."""
        spans: list[tuple[int, int]] = []
        for index in indices:
            before = (
                _apply_template(self.tokenizer, messages[:index], row, add_generation_prompt=True)
                if index
                else ""
            )
            if len(before) > end:
                break
            through = _apply_template(self.tokenizer, messages[: index + 1], row)
            if not rendered.startswith(through.rstrip()) or not through.startswith(before):
                raise DtlError.of(
                    row.location,
                    "the model's chat template changes earlier messages, so that the assistant's "
                    "tokens cannot be located",
                    self.alternative,
                )
            spans.append((len(before), len(through.rstrip("\n"))))
        return spans


def _is_message(message: Any) -> bool:
    """Return whether this is a message; `content` may be a list, or null with tool calls."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        return False
    return "content" in message and isinstance(message["content"], (str, list, type(None)))


def _apply_template(
    tokenizer: Any, messages: list[Message], row: Row, *, add_generation_prompt: bool = False
) -> str:
    from jinja2 import TemplateError

    try:
        return str(
            tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise DtlError.of(
            row.location,
            f"the model's chat template does not accept the row ({error})",
            "fix the messages",
        ) from error

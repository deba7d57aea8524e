"""Options of the tasks that read chats: the chat template, its variables, special tokens."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from dtl.config.schema.base import Record


class ChatOptions(Record):
    """Options of every task that reads chats."""

    chat_template: str | None = Field(
        None,
        min_length=1,
        description="Chat template instead of that of the model's tokenizer: a Jinja file, or one "
        "of alpaca, chatml, llama3, vicuna, zephyr. The exported tokenizer has it.",
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="Variables of the chat template, such as `enable_thinking: false`; a column of "
        "the same name has them for one row.",
    )
    special_tokens: Literal["tokens", "text"] | None = Field(
        None,
        description="How special tokens that a text of the data spells out, such as <|im_end|>, "
        "are read: as these tokens, or as text, so that a user cannot end a turn. Default: as "
        "tokens, which `dtl check` reports.",
    )

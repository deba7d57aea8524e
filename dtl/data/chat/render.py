"""Turns of a chat as the tokenizer's own template writes them, and which tokens answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dtl.core.errors import DtlError, Fault

if TYPE_CHECKING:
    from dtl.data.sources.rows import Row

Message = dict[str, Any]  # role, content, and what else a template knows


def is_message_list(value: Any) -> bool:
    """Whether a template can read it: a list of turns, one at least."""
    return isinstance(value, list) and bool(value) and all(map(_is_message, value))


def find_messages_fault(row: Row, column: str) -> Fault | None:
    """The fault of a column that holds something else than turns."""
    if is_message_list(row.fields[column]):
        return None
    return Fault(
        row.location,
        f"`{column}` is not a list of turns",
        'write [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]',
    )


def assistant_indices(messages: Sequence[Message]) -> list[int]:
    """Places of the assistant's turns."""
    return [place for place, turn in enumerate(messages) if turn["role"] == "assistant"]


def tokenize_chat(
    tokenizer: Any,
    messages: list[Message],
    row: Row,
    *,
    supervised: Sequence[int] | None,
    max_tokens: int,
    max_characters: int,
    plain_format: str,
    alternative: str,
) -> tuple[list[int], list[bool]]:
    """Token ids of a chat, and whether each belongs to an answer, its end-of-turn mark included.

    `answers`: places of the turns that count; None: all tokens do. Tokens beyond `limit`, and
    those of text beyond so many characters, may be missing. `plain`: what the data could be without
    turns; `otherwise`: what else the user could do where the template does not serve. Raises
    DtlError with the place of the row.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise DtlError.of(
            row.location,
            "the row holds chat messages, but the model's tokenizer has no chat template",
            f"take an instruction-tuned model, or give {plain_format}",
        )
    whole = _apply_template(tokenizer, messages, row)
    start = whole[:max_characters]
    if supervised is None:
        tokens = list(tokenizer(start, add_special_tokens=False)["input_ids"])
        return tokens, [True] * len(tokens)
    encoded = tokenizer(start, add_special_tokens=False, return_offsets_mapping=True)
    offsets = encoded["offset_mapping"][:max_tokens]
    reach = offsets[-1][1] if offsets else 0
    spans: list[tuple[int, int]] = []
    for place in supervised:
        asked = (
            _apply_template(tokenizer, messages[:place], row, add_generation_prompt=True)
            if place
            else ""
        )
        if len(asked) > reach:
            break
        answered = _apply_template(tokenizer, messages[: place + 1], row)
        if not whole.startswith(answered.rstrip()) or not answered.startswith(asked):
            raise DtlError.of(
                row.location,
                "the model's chat template rewrites earlier turns: the answers cannot be located",
                alternative,
            )
        spans.append((len(asked), len(answered.rstrip("\n"))))
    counted = [
        any(opens < end and closes > begin for begin, end in spans) for opens, closes in offsets
    ]
    return list(encoded["input_ids"][:max_tokens]), counted


def _is_message(message: Any) -> bool:
    """`content` may be parts, or null beside a tool call."""
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
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as fault:
        raise DtlError.of(
            row.location, f"the model's chat template refuses the row: {fault}", "fix the turns"
        ) from fault

"""The tokens that end an answer, at which a generated text stops."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dtl.core.errors import DtlError
from dtl.data.chat.answers import RenderedChat
from dtl.data.chat.messages import Chat, Message
from dtl.data.chat.template import CALL_ID, ChatTemplate, added_tokens

if TYPE_CHECKING:
    from torch import nn

QUESTION = {"role": "user", "content": "qzquestion"}
ANSWER = {"role": "assistant", "content": "qzanswer"}
FUNCTION = {"name": "f", "arguments": {"c": "d"}}
CALLS = [{"type": "function", "id": CALL_ID, "function": FUNCTION}]


def find_stop_tokens(tokenizer: Any, options: Mapping[str, Any]) -> list[int]:
    """Return the ids of the tokens that end a text, an answer or a tool call, each once.

    `options`: variables of the chat template.
    """
    ids = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if getattr(tokenizer, "chat_template", None):
        ids += _closing_tokens(tokenizer, options)
    return list(dict.fromkeys(ids))


def _closing_tokens(tokenizer: Any, options: Mapping[str, Any]) -> Iterator[int]:
    """Yield the last token of an answer and of a tool call, where it is a special token."""
    template, tokens = ChatTemplate(tokenizer, tuple(options.items())), added_tokens(tokenizer)
    answers: list[Message] = [ANSWER, {"role": "assistant", "content": "", "tool_calls": CALLS}]
    for answer in answers:
        rendered = RenderedChat(template, template.adapt(Chat([QUESTION, answer])))
        try:
            text = rendered.text(2)[: rendered.answer_end(1)]
            prompt = rendered.prompt(1) or ""
        except DtlError:  # a template without tool calls
            continue
        found = [] if tokens is None else list(tokens.finditer(text))
        if found and found[-1].end() == len(text) and len(text) > len(prompt):
            token_id = tokenizer.convert_tokens_to_ids(found[-1].group())
            if tokenizer.added_tokens_decoder[token_id].special:
                yield token_id


def add_stop_tokens(model: nn.Module, tokenizer: Any, options: Mapping[str, Any]) -> None:
    """Let the model stop at these tokens by default, beside those at which its base stops."""
    config: Any = getattr(model, "generation_config", None)
    if config is None:
        return
    known = config.eos_token_id
    known = known if isinstance(known, list) else [] if known is None else [known]
    ids = list(dict.fromkeys([*known, *find_stop_tokens(tokenizer, options)]))
    if ids:
        config.eos_token_id = ids[0] if len(ids) == 1 else ids

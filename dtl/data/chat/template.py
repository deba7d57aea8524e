"""The chat template of a tokenizer: rendering, and which form of a value it reads."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from dtl.core.errors import InvalidRowError
from dtl.data.chat.messages import REASONING_KEYS, WEIGHT_KEYS, Chat, Message

GENERATION_BLOCK = re.compile(r"\{%[-+]?\s*generation\b")
PROBE = "qzxprobe"  # a text that no template writes
CALL_ID = "call00001"  # nine alphanumeric characters, as Mistral's templates require


@dataclass(frozen=True)
class Rendered:
    """A rendered chat. `generated`: the character spans of its generation blocks; None: the
    template has none."""

    text: str
    generated: list[tuple[int, int]] | None = None


@dataclass(frozen=True)
class TemplateForm:
    """The form of values that a template reads.

    `content_parts`: a list of parts as content renders as its text does; `text_content`: a text
    renders as one. `text_arguments`: arguments of a call as JSON text, not as an object.
    `reasoning_key`: the key of a message's reasoning; None: the template has no place for it.
    """

    content_parts: bool
    text_content: bool
    text_arguments: bool
    reasoning_key: str | None


@dataclass(frozen=True)
class ChatTemplate:
    """Renders chats. `options`: variables of the template, for all chats. `location`: of the row,
    for messages."""

    tokenizer: Any
    options: tuple[tuple[str, Any], ...] = ()
    location: str = ""

    @property
    def name(self) -> str:
        """The name of the template in messages: that of its tokenizer."""
        return str(getattr(self.tokenizer, "name_or_path", "") or "the tokenizer")

    def at(self, location: str) -> ChatTemplate:
        """Return the same template for a row at another location."""
        return replace(self, location=location)

    @property
    def form(self) -> TemplateForm:
        """The form of values that the template reads."""
        return _find_form(self.tokenizer, str(self.tokenizer.chat_template))

    def adapt(self, chat: Chat) -> Chat:
        """Return the chat with its values in the form that the template reads."""
        form = self.form
        messages = [_adapt_message(message, form) for message in chat.messages]
        return replace(chat, messages=messages, options={**dict(self.options), **chat.options})

    def render(self, chat: Chat, *, add_generation_prompt: bool = False) -> Rendered:
        """Return a chat that `adapt` returned as text. Raises InvalidRowError where the template
        does not accept it."""
        from jinja2 import TemplateError

        try:
            return _render(self.tokenizer, chat, add_generation_prompt=add_generation_prompt)
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            first_error = error
        try:  # some templates require the key `content` also beside calls
            filled = [{"content": "", **message} for message in chat.messages]
            return _render(
                self.tokenizer,
                replace(chat, messages=filled),
                add_generation_prompt=add_generation_prompt,
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError):
            raise InvalidRowError.of(
                self.location,
                f"the chat template of {self.name} does not accept the row ({first_error})",
                "change the messages as the template requires",
            ) from first_error


def added_tokens(tokenizer: Any) -> re.Pattern[str] | None:
    """Return a pattern of the tokens that a tokenizer finds in a text before all others."""
    return _added_tokens(tokenizer, len(tokenizer))


@lru_cache(maxsize=64)
def _added_tokens(tokenizer: Any, size: int) -> re.Pattern[str] | None:
    """`size`: of the vocabulary, which grows with each added token."""
    tokens = {str(token) for token in tokenizer.added_tokens_decoder.values()} - {""}
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if tokens else None


def _render(tokenizer: Any, chat: Chat, *, add_generation_prompt: bool) -> Rendered:
    """Return a chat as text, as `apply_chat_template` does."""
    values: dict[str, Any] = {"tools": chat.tools, "documents": chat.documents, **chat.options}
    template = tokenizer.chat_template
    if not (isinstance(template, str | dict) and GENERATION_BLOCK.search(str(template))):
        return Rendered(
            tokenizer.apply_chat_template(
                chat.messages, tokenize=False, add_generation_prompt=add_generation_prompt, **values
            )
        )
    from transformers.utils.chat_template_utils import render_jinja_template

    chosen = tokenizer.get_chat_template(tools=chat.tools)
    texts, spans = render_jinja_template(
        conversations=[chat.messages],
        chat_template=chosen,
        add_generation_prompt=add_generation_prompt,
        return_assistant_tokens_mask=True,
        **{**tokenizer.special_tokens_map, **values},
    )
    has_blocks = GENERATION_BLOCK.search(chosen) is not None
    return Rendered(texts[0], [tuple(span) for span in spans[0]] if has_blocks else None)


def _adapt_message(message: Message, form: TemplateForm) -> Message:
    made = {key: value for key, value in message.items() if key not in WEIGHT_KEYS}
    content = made.get("content")
    if isinstance(content, list) and not form.content_parts:
        made["content"] = "\n".join(part["text"] for part in content)
    elif isinstance(content, str) and not form.text_content:
        made["content"] = [{"type": "text", "text": content}]
    present = [key for key in REASONING_KEYS if made.get(key)]
    if (
        present
        and form.reasoning_key is not None
        and all(made[key] == made[present[0]] for key in present)
    ):
        reasoning = made[present[0]]
        made = {key: value for key, value in made.items() if key not in REASONING_KEYS}
        made[form.reasoning_key] = reasoning
    if form.text_arguments and "tool_calls" in made:
        made["tool_calls"] = [_with_text_arguments(call) for call in made["tool_calls"]]
    return made


def _with_text_arguments(call: dict[str, Any]) -> dict[str, Any]:
    arguments = call["function"]["arguments"]
    if not isinstance(arguments, Mapping):
        return call
    text = json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**call["function"], "arguments": text}}


@lru_cache(maxsize=64)
def _find_form(tokenizer: Any, template: str) -> TemplateForm:
    """Return the form of values that a template reads, by rendering small chats."""
    parts = [{"type": "text", "text": PROBE}]
    as_text, as_parts = (_try(tokenizer, [_user(content)]) for content in (PROBE, parts))
    reads_text = as_text is not None and PROBE in as_text
    reads_parts = as_parts is not None and PROBE in as_parts
    return TemplateForm(
        content_parts=reads_parts and (as_parts == as_text or not reads_text),
        text_content=reads_text or not reads_parts,
        text_arguments=_reads_text_arguments(tokenizer),
        reasoning_key=next(filter(lambda key: _reads_key(tokenizer, key), REASONING_KEYS), None),
    )


def _reads_text_arguments(tokenizer: Any) -> bool:
    """Return whether an object as arguments fails, or is written as a Python literal."""
    found = {}
    for kind, arguments in (("object", {PROBE: PROBE}), ("text", json.dumps({PROBE: PROBE}))):
        function = {"name": "f", "arguments": arguments}
        call = {"type": "function", "id": CALL_ID, "function": function}
        messages = [_user("a"), {"role": "assistant", "content": "", "tool_calls": [call]}]
        found[kind] = _try(tokenizer, messages)
    as_object, as_text = found["object"], found["text"]
    if as_text is None or PROBE not in as_text:
        return False
    return as_object is None or f"{{'{PROBE}'" in as_object


def _reads_key(tokenizer: Any, key: str) -> bool:
    messages = [_user("a"), {"role": "assistant", "content": "b", key: PROBE}]
    return PROBE in (_try(tokenizer, messages) or "")


def _user(content: Any) -> Message:
    return {"role": "user", "content": content}


def _try(tokenizer: Any, messages: list[Message]) -> str | None:
    """Return the messages as text; None where the template does not accept them."""
    from jinja2 import TemplateError

    try:
        return _render(tokenizer, Chat(messages), add_generation_prompt=False).text
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError):
        return None

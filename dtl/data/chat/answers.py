"""Where the assistant's answers stand in a rendered chat, and which of them are as in use.

In use, a model reads the messages before an answer with the template's generation prompt, and
writes what the template renders after it, up to the token that ends the message.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from dtl.core.errors import DtlError
from dtl.data.chat.markers import LocatedText, locate_texts
from dtl.data.chat.messages import Chat
from dtl.data.chat.template import ChatTemplate, Rendered, added_tokens

if TYPE_CHECKING:
    from dtl.data.chat.beginnings import Beginnings

MAX_CLOSING = 2000  # characters in which the tokens that end an answer stand
FOLLOWING = {"role": "user", "content": "x"}  # a message after an answer


@dataclass(frozen=True)
class AnswerSpan:
    """The characters of an answer, with its end.

    `follows_prompt`: the text before it ends with the generation prompt. `is_stable`: the text up
    to its end is that of the chat that ends with it. `is_as_in_use`: there it also follows the
    generation prompt.
    """

    message: int
    start: int
    end: int
    follows_prompt: bool
    is_stable: bool
    is_as_in_use: bool


class RenderedChat:
    """A chat, and its beginnings, as the template renders them; each is rendered once."""

    def __init__(self, template: ChatTemplate, chat: Chat) -> None:
        self.template = template
        self.chat = chat
        self._rendered: dict[tuple[int, bool], Rendered] = {}
        self._located: dict[tuple[int, bool], list[LocatedText]] = {}
        self._extents: dict[tuple[int, bool], dict[int, tuple[int, int]]] = {}
        self._starts: dict[int, list[int]] = {}
        self._beginnings: dict[bool, Beginnings | None] = {}
        self._answer_ends: dict[int, int] = {}

    def beginning(self, count: int) -> Chat:
        """Return the chat of the first messages."""
        return replace(self.chat, messages=self.chat.messages[:count])

    def text(self, count: int, *, with_prompt: bool = False) -> str:
        """Return the first messages as text; `with_prompt`: with the generation prompt."""
        return self._render(count, with_prompt=with_prompt).text

    def _render(self, count: int, *, with_prompt: bool) -> Rendered:
        from dtl.data.chat.beginnings import render_beginnings  # it imports Jinja

        if 0 < count < len(self.chat.messages):
            if with_prompt not in self._beginnings:
                self._beginnings[with_prompt] = render_beginnings(
                    self.template, self.chat, add_generation_prompt=with_prompt
                )
            if (beginnings := self._beginnings[with_prompt]) is not None:
                return Rendered(beginnings.text_of(count))
        key = (count, with_prompt)
        if key not in self._rendered:
            self._rendered[key] = self.template.render(
                self.beginning(count), add_generation_prompt=with_prompt
            )
        return self._rendered[key]

    def generated(self, count: int) -> list[tuple[int, int]] | None:
        """Return the spans of the generation blocks; None if the template has none."""
        return self._render(count, with_prompt=False).generated

    def prompt(self, message: int) -> str | None:
        """Return what the model reads before an answer; None: the template has no such text."""
        if message == 0:
            return None
        try:
            return self.text(message, with_prompt=True)
        except DtlError:  # for example: a template that requires a question
            return None

    def located(self, count: int, *, with_prompt: bool = False) -> list[LocatedText]:
        """Return where each text of the first messages is rendered."""
        key = (count, with_prompt)
        if key not in self._located:
            self._located[key] = locate_texts(
                self.template,
                self.beginning(count),
                self.text(count, with_prompt=with_prompt),
                add_generation_prompt=with_prompt,
            )
        return self._located[key]

    def extent(
        self, message: int, count: int, *, with_prompt: bool = False
    ) -> tuple[int, int] | None:
        """Return the first and the last character of the texts of a message; None: unknown."""
        key = (count, with_prompt)
        if key not in self._extents:
            self._extents[key] = _find_extents(self.located(count, with_prompt=with_prompt))
        return self._extents[key].get(message)

    def answer_end(self, message: int) -> int:
        """Return where an answer ends in the text of the messages through it: after the token that
        closes it, before what the template writes only at the end of a chat."""
        if message not in self._answer_ends:
            self._answer_ends[message] = self._find_answer_end(message)
        return self._answer_ends[message]

    def _find_answer_end(self, message: int) -> int:
        text = self.text(message + 1)
        visible = text.rstrip()
        closing = self._closing_tokens(visible)
        if not closing:
            return len(text.rstrip("\n"))
        if len(closing) == 1:
            return len(visible)
        extent = self.extent(message, message + 1)
        content_end = 0 if extent is None else extent[1]
        shared = self._shared_with_longer_chat(message)
        ends = [
            each.end() for each in closing if content_end <= each.start() < each.end() <= shared
        ]
        return ends[-1] if ends else len(visible)

    def _closing_tokens(self, visible: str) -> list[re.Match[str]]:
        """Return the added tokens at the end of a text, with only whitespace between them."""
        tokens = added_tokens(self.template.tokenizer)
        last = max(0, len(visible) - MAX_CLOSING)
        found = [] if tokens is None else list(tokens.finditer(visible, last))
        first, end = len(found), len(visible)
        while first and not visible[found[first - 1].end() : end].strip():
            first -= 1
            end = found[first].start()
        if not found or found[-1].end() != len(visible):
            return []
        return found[first:]

    def _shared_with_longer_chat(self, message: int) -> int:
        """Return how many characters are the same if a question follows the answer."""
        longer = replace(self.chat, messages=[*self.chat.messages[: message + 1], FOLLOWING])
        try:
            text = self.template.render(longer).text
        except DtlError:
            return 0
        return _shared_length(text, self.text(message + 1))

    @cached_property
    def _header(self) -> str:
        """The generation prompt alone."""
        question = replace(self.chat, messages=[FOLLOWING])
        try:
            text = self.template.render(question).text
            prompt = self.template.render(question, add_generation_prompt=True).text
        except DtlError:
            return ""
        return prompt[len(text) :] if prompt.startswith(text) else ""

    def is_stable(self, message: int, count: int) -> bool:
        """Return whether the text of the first `count` messages begins with that of the messages
        through an answer, up to its end."""
        return self.text(count).startswith(self.text(message + 1)[: self.answer_end(message)])

    def locate_answer(self, message: int, count: int) -> AnswerSpan:
        """Return where an answer stands in the text of the first `count` messages.

        The text before it may differ from that of use, as may its own beginning or end.
        """
        text, through = self.text(count), self.text(message + 1)
        prompt, end = self.prompt(message), self.answer_end(message)
        is_stable = self.is_stable(message, count)
        is_as_in_use = is_stable and (message == 0 or through.startswith(prompt or through))
        if prompt is not None and text.startswith(prompt):
            start, follows_prompt = len(prompt), True
        else:
            start, follows_prompt = self._find_start(message, count, prompt)
        if not is_stable:
            end = self._find_end(message, count, start, end)
        return AnswerSpan(message, start, max(start, end), follows_prompt, is_stable, is_as_in_use)

    def _find_start(self, message: int, count: int, prompt: str | None) -> tuple[int, bool]:
        """Return where an answer starts, by the end of the message before it, and whether the
        generation prompt stands before it."""
        text, extent = self.text(count), self.extent(message, count)
        limit = self._next_start(message, count) if extent is None else extent[0]
        before = self.extent(message - 1, count) if message else None
        in_use = self.extent(message - 1, message, with_prompt=True) if message and prompt else None
        if before is not None and in_use is not None and prompt is not None:
            header = prompt[in_use[1] :]
            start = before[1] + _shared_length(header, text[before[1] : limit])
            if start - before[1] == len(header):
                return start, True
            return self._after_header(text, start, limit) or (start, False)
        return self._after_header(text, 0, limit) or (limit, False)

    def _after_header(self, text: str, start: int, limit: int) -> tuple[int, bool] | None:
        """Return the end of the last generation prompt in a part of the text, as `_find_start`."""
        place = text.rfind(self._header, start, limit) if self._header else -1
        return None if place < 0 else (place + len(self._header), True)

    def _find_end(self, message: int, count: int, start: int, end: int) -> int:
        """Return where an answer that starts at `start` ends, by the end of its content; `end`:
        where it ends if no message follows."""
        extent, last = self.extent(message, count), self.extent(message, message + 1)
        content_end = start if extent is None else extent[1]
        after = self.text(count)[content_end : self._next_start(message, count)]
        closing = "" if last is None else self.text(message + 1)[last[1] : end]
        if closing and after.startswith(closing):
            return content_end + len(closing)
        tokens = added_tokens(self.template.tokenizer)
        shared = _shared_length(after, closing)
        if tokens is None:
            return content_end + shared
        ends = [match.end() for match in tokens.finditer(after) if match.end() <= shared]
        if ends:
            return content_end + ends[-1]
        return content_end + self._closing_length(after, tokens, closing)

    def _closing_length(self, after: str, tokens: re.Pattern[str], closing: str) -> int:
        """Return the length of the token that ends an answer, at the start of the text between two
        messages; 0: none. `closing`: what ends the answer at the end of a chat."""
        found = list(tokens.finditer(after))
        if not found or found[0].start() != 0 or tokens.search(closing) is None:
            return 0
        opening = tokens.search(self._header)
        if opening is not None and opening.group() in after:
            return len(after[: after.index(opening.group())].rstrip())
        return found[0].end() if len(found) > 1 else 0

    def _next_start(self, message: int, count: int) -> int:
        """Return where the first text after a message starts."""
        if count not in self._starts:
            starts = [len(self.text(count))]
            for other in range(count - 1, 0, -1):
                extent = self.extent(other, count)
                starts.append(starts[-1] if extent is None else min(extent[0], starts[-1]))
            self._starts[count] = starts[::-1]  # of the messages from 1 on
        return self._starts[count][message] if message < count else len(self.text(count))


@dataclass(frozen=True)
class Conversation:
    """The first `count` messages of a chat, and those of its answers that are learned from it."""

    count: int
    supervised: tuple[int, ...]


def plan_conversations(
    rendered: RenderedChat, supervised: Sequence[int], *, expand: bool | None
) -> list[Conversation]:
    """Return the conversations from which the answers of a chat are learned, the longest last.

    `expand` True: each answer from the messages through it. None: as few conversations as possible,
    in each of which its answers are as in use. False: all answers from the full chat.
    """
    total = len(rendered.chat.messages)
    if expand is False or not supervised:
        return [Conversation(total, tuple(supervised))]
    if expand:
        return [Conversation(message + 1, (message,)) for message in supervised]
    remaining, made = list(supervised), []
    count = total
    while remaining:
        last = remaining[-1]
        if count > last + 1 and not rendered.is_stable(last, count):
            count = last + 1  # what follows the answer changes it
            continue
        learned = tuple(
            message
            for message in remaining
            if message == last or rendered.is_stable(message, count)
        )
        made.append(Conversation(count, learned))
        remaining = [message for message in remaining if message not in learned]
        count = remaining[-1] + 1 if remaining else 0
    return made[::-1]


def _find_extents(located: Sequence[LocatedText]) -> dict[int, tuple[int, int]]:
    """Return the first and the last character of the located texts of each message."""
    extents: dict[int, tuple[int, int]] = {}
    for each in located:
        if each.text.message is not None and each.location is not None:
            start, end = each.location.start, each.location.end
            first, last = extents.get(each.text.message, (start, end))
            extents[each.text.message] = min(start, first), max(end, last)
    return extents


def _shared_length(first: str, second: str) -> int:
    """Return the number of characters with which both texts begin."""
    return next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b),
        min(len(first), len(second)),
    )

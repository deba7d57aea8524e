"""Tokenizes chats with the tokenizer's chat template: token ids, and which are supervised."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dtl.core.errors import DtlError
from dtl.data.chat.answers import AnswerSpan, RenderedChat, plan_conversations
from dtl.data.chat.borders import TextToken, tokenize_with_borders
from dtl.data.chat.coverage import find_dropped_features, find_unread_keys
from dtl.data.chat.messages import (
    Chat,
    Message,
    assistant_indices,
    find_messages_fault,
    is_message_list,
    normalize_messages,
    read_chat,
    supervised_indices,
)
from dtl.data.chat.template import ChatTemplate
from dtl.data.modalities.special_tokens import TextualTokenizer

if TYPE_CHECKING:
    from dtl.data.sources.rows import Row

__all__ = [
    "ChatRenderer",
    "ChatTokenizer",
    "EncodedChat",
    "Message",
    "assistant_indices",
    "find_messages_fault",
    "is_message_list",
    "normalize_messages",
    "read_chat",
    "supervised_indices",
]


NOT_AS_IN_USE = (
    "an answer does not follow the generation prompt of the chat template as it does in use"
)


@dataclass(frozen=True)
class EncodedChat:
    """The tokens of a chat. `supervised`: whether each of them is; `dropped`: the features of the
    chat that the template drops, and `messages.KEY` for keys of messages that it does not read;
    `is_as_in_use`: the text before each supervised answer, and the answer, are those of use."""

    tokens: list[int]
    supervised: list[bool]
    dropped: tuple[str, ...] = ()
    is_as_in_use: bool = True

    @property
    def notes(self) -> tuple[str, ...]:
        """What is unusual about the chat."""
        return () if self.is_as_in_use else (NOT_AS_IN_USE,)


@dataclass
class ChatRenderer:
    """Renders chats, and remembers the last one: it is expanded first, then encoded."""

    _last: RenderedChat | None = field(default=None, repr=False)

    def render(self, template: ChatTemplate, chat: Chat) -> RenderedChat:
        """Return a chat with its renderings."""
        adapted, last = template.adapt(chat), self._last
        if last is None or last.template != template or last.chat != adapted:
            last = RenderedChat(template, adapted)
        self._last = last
        return last


@dataclass(frozen=True)
class ChatTokenizer:
    """Tokenizes chats with the chat template of a model's tokenizer.

    Tokens beyond `max_tokens`, and those of text beyond `max_characters`, may be missing. For
    messages: `plain_format`, the data's format without chat messages. `options`: variables of the
    template. `expand`: whether each answer is an example of its own; None: where the template
    renders it differently in a longer chat.
    """

    tokenizer: Any
    max_tokens: int
    max_characters: int
    plain_format: str
    options: dict[str, Any] = field(default_factory=dict)
    expand: bool | None = None
    renderer: ChatRenderer = field(default_factory=ChatRenderer)

    def expand_messages(self, chat: Chat, row: Row) -> list[list[Message]]:
        """Return the messages of each example of a chat, with a `weight` that is 0 for answers that
        are not learned from it; the longest last."""
        supervised = supervised_indices(chat.messages)
        conversations = plan_conversations(self._render(chat, row), supervised, expand=self.expand)
        return [
            [
                {**message, "weight": int(index in conversation.supervised)}
                if message["role"] == "assistant"
                else message
                for index, message in enumerate(chat.messages[: conversation.count])
            ]
            for conversation in conversations
        ]

    def encode(self, chat: Chat, row: Row, *, supervised: Sequence[int] | None) -> EncodedChat:
        """Return the tokens of a chat. `supervised`: the indices of the messages that are; None:
        all tokens except those of answers with `weight: 0`. Raises DtlError."""
        rendered = self._render(chat, row)
        count = len(chat.messages)
        text = rendered.text(count)[: self.max_characters]
        located = supervised_indices(chat.messages) if supervised is None else supervised
        spans = [rendered.locate_answer(message, count) for message in located]
        borders = [span.start for span in spans if span.follows_prompt]
        excluded: list[tuple[int, int]] = []
        if supervised is None:
            ignored = set(assistant_indices(chat.messages)) - set(located)
            excluded = _characters([rendered.locate_answer(each, count) for each in ignored])
            included = [(0, len(text))]
        else:
            included = _limit_to_generated(spans, rendered.generated(count))
        ends = [end for span in (*included, *excluded) for end in span]
        tokens = tokenize_with_borders(self.tokenizer, text, borders, ends)
        learned = located if supervised is None else supervised
        learned_spans, other_spans = _Spans(included), _Spans(excluded)
        return EncodedChat(
            [token.id for token in tokens[: self.max_tokens]],
            [
                learned_spans.overlaps(token) and not other_spans.overlaps(token)
                for token in tokens[: self.max_tokens]
            ],
            (
                *find_dropped_features(rendered, count, learned, in_full_chat=self.expand is False),
                *find_unread_keys(rendered, count),
            ),
            all(span.is_as_in_use for span in spans),
        )

    def encode_prompt(self, chat: Chat, row: Row) -> EncodedChat:
        """Return the tokens that the model reads before it answers the last message."""
        rendered, count = self._render(chat, row), len(chat.messages)
        text = rendered.text(count, with_prompt=True)[: self.max_characters]
        tokens = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        dropped = find_dropped_features(rendered, count, (), in_full_chat=False)
        unread = find_unread_keys(rendered, count)
        return EncodedChat(tokens, [False] * len(tokens), (*dropped, *unread))

    def _render(self, chat: Chat, row: Row) -> RenderedChat:
        if not getattr(self.tokenizer, "chat_template", None):
            raise DtlError.of(
                row.location,
                "the row has chat messages, but the model's tokenizer has no chat template",
                "set task.chat_template, use an instruction-tuned model, or give "
                f"{self.plain_format}",
            )
        template = ChatTemplate(self.tokenizer, tuple(self.options.items()), row.location)
        if isinstance(self.tokenizer, TextualTokenizer):
            hide = self.tokenizer.hide
            chat = replace(
                chat,
                messages=hide(chat.messages),
                tools=hide(chat.tools),
                documents=hide(chat.documents),
            )
        return self.renderer.render(template, chat)


def _characters(spans: Sequence[AnswerSpan]) -> list[tuple[int, int]]:
    return [(span.start, span.end) for span in spans]


def _limit_to_generated(
    spans: Sequence[AnswerSpan], generated: list[tuple[int, int]] | None
) -> list[tuple[int, int]]:
    """Return the characters of the answers: of a template with generation blocks, those in them."""
    if generated is None:
        return _characters(spans)
    return [
        (max(start, span.start), end)
        for span in spans
        for start, end in generated
        if start < span.end and end > span.start
    ]


class _Spans:
    """Spans of characters, which may overlap each other."""

    def __init__(self, spans: Iterable[tuple[int, int]]) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in sorted(spans):
            if self._ends and start <= self._ends[-1]:
                self._ends[-1] = max(end, self._ends[-1])
            elif end > start:
                self._starts.append(start)
                self._ends.append(end)

    def overlaps(self, token: TextToken) -> bool:
        """Return whether a character of the token is in a span."""
        place = bisect_left(self._starts, token.end) - 1  # the last span that starts before its end
        return place >= 0 and self._ends[place] > token.start

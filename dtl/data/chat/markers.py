"""Markers in the texts of a chat, which show where a template writes each text.

A marker is a character of a private-use plane, before the first and after the last visible
character of a text, so that a template that strips texts strips the same. A marked rendering counts
only if it is the unmarked one once its markers are removed.
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass, field, replace
from typing import Any

from dtl.core.errors import DtlError
from dtl.data.chat.messages import REASONING_KEYS, Chat, Message
from dtl.data.chat.template import ChatTemplate

FIRST_MARKER = 0xF0000
MARKERS = re.compile("[\U000f0000-\U000ffffd]")
MAX_MARKED_TEXTS = 30_000  # there are no more markers
THINK_TAGS = re.compile(r"(</?think>)")
FEATURE_OF_ROLE = {"system": "system", "developer": "system", "tool": "tool_results"}


@dataclass(frozen=True)
class ChatText:
    """A text of a chat. `message`: its index; None: of the tools or documents. `feature`: system,
    content, reasoning, tool_calls, tool_results, tools or documents."""

    message: int | None
    feature: str
    text: str


@dataclass(frozen=True)
class Location:
    """Where a text stands in a rendered chat, in characters, the first time."""

    start: int
    end: int


@dataclass(frozen=True)
class LocatedText:
    """A text, and where it is rendered. `location` None: it is not rendered, or `is_rendered` says
    that it is, at an unknown place."""

    text: ChatText
    location: Location | None
    is_rendered: bool


@dataclass
class _Marker:
    """Puts markers around texts, and lists the texts. `wanted`: the numbers of those to mark."""

    wanted: frozenset[int] | None
    texts: list[ChatText] = field(default_factory=list)

    def mark(self, text: str, message: int | None, feature: str) -> str:
        """Return a text with its markers; a blank text has none."""
        visible, number = text.strip(), len(self.texts)
        if not visible or number >= MAX_MARKED_TEXTS:
            return text
        self.texts.append(ChatText(message, feature, visible))
        if self.wanted is not None and number not in self.wanted:
            return text
        start = len(text) - len(text.lstrip())
        first, last = (chr(FIRST_MARKER + 2 * number + i) for i in (0, 1))
        return f"{text[:start]}{first}{visible}{last}{text[start + len(visible) :]}"

    def mark_values(self, value: Any, message: int | None, feature: str) -> Any:
        """Return a value with markers around each text and key in it."""
        if isinstance(value, str):
            return self.mark(value, message, feature)
        if isinstance(value, list):
            return [self.mark_values(item, message, feature) for item in value]
        if isinstance(value, dict):
            return {
                self.mark(key, message, feature): self.mark_values(item, message, feature)
                for key, item in value.items()
            }
        return value

    def mark_chat(self, chat: Chat) -> Chat:
        """Return the chat with markers around the wanted texts."""
        return replace(
            chat,
            messages=[self._mark_message(m, index) for index, m in enumerate(chat.messages)],
            tools=chat.tools and [self._mark_tool(tool) for tool in chat.tools],
            documents=chat.documents and self.mark_values(chat.documents, None, "documents"),
        )

    def _mark_message(self, message: Message, index: int) -> Message:
        made = dict(message)
        for key in REASONING_KEYS:
            if isinstance(made.get(key), str):
                made[key] = self.mark(made[key], index, "reasoning")
        feature = FEATURE_OF_ROLE.get(message["role"], "content")
        content = made.get("content")
        if isinstance(content, str):
            made["content"] = self._mark_content(content, index, feature)
        elif isinstance(content, list):
            made["content"] = [
                {**part, "text": self._mark_content(part["text"], index, feature)}
                for part in content
            ]
        if "tool_calls" in made:
            made["tool_calls"] = [self._mark_call(call, index) for call in made["tool_calls"]]
        return made

    def _mark_content(self, content: str, index: int, feature: str) -> str:
        """Mark reasoning between think tags, which templates split off, as a text of its own."""
        if feature != "content" or "</think>" not in content:
            return self.mark(content, index, feature)
        parts, is_reasoning = THINK_TAGS.split(content), not content.lstrip().startswith("<think>")
        made = []
        for number, part in enumerate(parts):
            if part in ("<think>", "</think>"):
                is_reasoning = part == "<think>"
                made.append(part)
            else:
                is_reasoning = is_reasoning and "</think>" in parts[number:]
                made.append(self.mark(part, index, "reasoning" if is_reasoning else feature))
        return "".join(made)

    def _mark_call(self, call: Any, index: int) -> Any:
        function = dict(call["function"])
        function["name"] = self.mark(function["name"], index, "tool_calls")
        arguments, is_text = function["arguments"], isinstance(function["arguments"], str)
        if is_text:
            with contextlib.suppress(ValueError):
                arguments = json.loads(arguments)
        marked = self.mark_values(arguments, index, "tool_calls")
        if is_text and not isinstance(marked, str):
            marked = json.dumps(marked, ensure_ascii=False)
        return {**call, "function": {**function, "arguments": marked}}

    def _mark_tool(self, tool: Any) -> Any:
        """Mark name and description of a tool; the rest of its schema is one with them."""
        if not isinstance(tool, dict):
            return self.mark_values(tool, None, "tools")
        inner = tool.get("function", tool)
        if not isinstance(inner, dict):
            return tool
        marked = {
            key: self.mark(inner[key], None, "tools")
            for key in ("name", "description")
            if isinstance(inner.get(key), str)
        }
        made = {key: marked.get(key, value) for key, value in inner.items()}
        return {**tool, "function": made} if "function" in tool else made


def locate_texts(
    template: ChatTemplate, chat: Chat, rendered: str, *, add_generation_prompt: bool = False
) -> list[LocatedText]:
    """Return where the template writes each text of a chat; `rendered`: the chat as rendered.

    A text whose markers change what the template writes is searched without them.
    """
    listing = _Marker(frozenset())
    listing.mark_chat(chat)
    texts = listing.texts
    found: dict[int, Location | None] = {}
    pending = [frozenset(range(len(texts)))]
    while pending:
        wanted = pending.pop()
        marked = _Marker(wanted).mark_chat(chat)
        try:
            text = template.render(marked, add_generation_prompt=add_generation_prompt).text
        except DtlError:
            text = ""
        if MARKERS.sub("", text) == rendered:
            found |= _read_markers(text, wanted)
        elif len(wanted) > 1:
            pending += _split(wanted, texts)
    return [
        LocatedText(text, found[number], found[number] is not None)
        if number in found
        else LocatedText(text, None, _contains(rendered, text.text))
        for number, text in enumerate(texts)
    ]


def _read_markers(marked: str, wanted: frozenset[int]) -> dict[int, Location | None]:
    """Return where each wanted text is, from a marked rendering; without those that the template
    splits, which have one marker."""
    places: dict[int, int] = {}
    for removed, match in enumerate(MARKERS.finditer(marked)):
        places.setdefault(ord(match.group()) - FIRST_MARKER, match.start() - removed)
    found: dict[int, Location | None] = {}
    for number in wanted:
        start, end = places.get(2 * number), places.get(2 * number + 1)
        if start is None and end is None:
            found[number] = None
        elif start is not None and end is not None:
            found[number] = Location(start, end)
    return found


def _split(wanted: frozenset[int], texts: list[ChatText]) -> list[frozenset[int]]:
    """Return the texts of each message, or those of one message singly."""
    by_message: dict[int | None, set[int]] = {}
    for number in wanted:
        by_message.setdefault(texts[number].message, set()).add(number)
    if len(by_message) > 1:
        return [frozenset(numbers) for numbers in by_message.values()]
    return [frozenset({number}) for number in wanted]


def _contains(rendered: str, text: str) -> bool:
    """Return whether a text is rendered as it is, or escaped as in JSON."""
    return text in rendered or json.dumps(text, ensure_ascii=False)[1:-1] in rendered

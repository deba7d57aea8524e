"""The texts of all beginnings of a chat from one rendering, of templates that write in order.

Such a template has one loop over the messages, and writes each of them before it reads the next
one; what it writes after the loop depends on no message. What it has written when it reads message
k is then the beginning of the text of the first k messages, and what follows the loop is its end.
Whether a template is of this kind is read in its syntax tree, and while it is rendered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError, nodes

from dtl.data.chat.messages import Chat, Message
from dtl.data.chat.template import GENERATION_BLOCK, ChatTemplate

MESSAGES = "messages"
# Of the variable `loop`; the others depend on later messages.
ORDERED_LOOP = {"index", "index0", "first", "previtem", "depth", "depth0"}
FAULTS = (TemplateError, TypeError, ValueError, LookupError, AttributeError)


@dataclass(frozen=True)
class Beginnings:
    """The texts of the beginnings of a chat. `ends`: how many characters of `text` were written
    before each message was read, and before the end of the chat was found; `closing`: what follows
    the last message."""

    text: str
    ends: tuple[int, ...]
    closing: str

    def text_of(self, count: int) -> str:
        """Return the text of the first `count` messages, at least one."""
        return self.text[: self.ends[count]] + self.closing


def render_beginnings(
    template: ChatTemplate, chat: Chat, *, add_generation_prompt: bool
) -> Beginnings | None:
    """Return the texts of all beginnings; None where the template does not write in order."""
    try:
        compiled = _compile(template.tokenizer, chat)
        if compiled is None or not _writes_in_order(compiled[1], compiled[0].environment):
            return None
        found = _trace(compiled[0], template, chat, add_generation_prompt=add_generation_prompt)
        text = template.render(chat, add_generation_prompt=add_generation_prompt).text
    except FAULTS:
        return None
    return found if found is not None and found.text_of(len(chat.messages)) == text else None


def _compile(tokenizer: Any, chat: Chat) -> tuple[Any, str] | None:
    """Return the compiled template of a chat, and its source; None: with generation blocks, which
    only transformers locates."""
    from transformers.utils import chat_template_utils

    compile_template = getattr(chat_template_utils, "_compile_jinja_template", None)
    source = tokenizer.get_chat_template(tools=chat.tools)
    if compile_template is None or GENERATION_BLOCK.search(source):
        return None
    return compile_template(source), source


def _trace(
    compiled: Any, template: ChatTemplate, chat: Chat, *, add_generation_prompt: bool
) -> Beginnings | None:
    """Render a chat, and return how far the text was when each message was read."""
    read = _MessageReads()
    pieces = compiled.generate(
        messages=_TracedMessages(chat.messages, 0, read),
        tools=chat.tools,
        documents=chat.documents,
        add_generation_prompt=add_generation_prompt,
        **{**template.tokenizer.special_tokens_map, **chat.options},
    )
    ends, parts, length = list[int](), list[str](), 0
    for piece in pieces:
        ends += [length] * (read.count - len(ends))
        parts.append(piece)
        length += len(piece)
    ends += [length] * (read.count - len(ends))
    if not read.is_ordered or read.count != len(chat.messages) + 1:
        return None
    written = "".join(parts)
    return Beginnings(written[: ends[-1]], tuple(ends), written[ends[-1] :])


@dataclass
class _MessageReads:
    """`count`: how many messages the loop has requested, with the one after the last;
    `is_ordered`: no message was read before, nor their number."""

    count: int = 0
    is_ordered: bool = True
    loops: int = 0


class _TracedMessages(Sequence[Message]):
    """Messages from an offset on, which record what is read of them."""

    def __init__(self, messages: list[Message], offset: int, read: _MessageReads) -> None:
        self._messages, self._offset, self._read = messages, offset, read

    def __len__(self) -> int:
        self._read.is_ordered = False
        return len(self._messages) - self._offset

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            if index.stop is None and index.step is None and (index.start or 0) >= 0:
                offset = self._offset + (index.start or 0)
                return _TracedMessages(self._messages, offset, self._read)
            self._read.is_ordered = False
            return self._messages[self._offset :][index]
        place = index + self._offset
        if index < 0 or place >= max(self._read.count, 1):
            self._read.is_ordered = False
        return self._messages[self._offset :][index]

    def __iter__(self) -> Iterator[Message]:
        self._read.loops += 1
        if self._read.loops > 1:
            self._read.is_ordered = False
        # Messages before the offset are read as soon as the loop begins.
        self._read.count = self._offset
        for message in self._messages[self._offset :]:
            self._read.count += 1
            yield message
        self._read.count = len(self._messages) + 1


@lru_cache(maxsize=64)
def _writes_in_order(source: str, environment: Any) -> bool:
    """Return whether the syntax tree of a template has one loop over the messages at its top level,
    which reads no later message, and nothing after it that depends on one."""
    body = environment.parse(source).body
    aliases = _find_aliases(body)
    loops = [
        place
        for place, node in enumerate(body)
        if isinstance(node, nodes.For) and _is_name(node.iter, aliases)
    ]
    if len(loops) != 1:
        return False
    loop = body[loops[0]]
    if not isinstance(loop, nodes.For) or loop.recursive or not _is_loop_ordered(loop):
        return False
    if not _are_reads_ordered(body, loop, aliases):
        return False
    assigned = _assigned_names(body) | aliases
    after = [name for node in body[loops[0] + 1 :] for name in _names(node)]
    return not any(name.name in assigned for name in after)


def _find_aliases(body: list[nodes.Node]) -> set[str]:
    """Return the names of the messages, and of the messages from one on."""
    aliases = {MESSAGES}
    for node in body:
        for assign in _walk(node, nodes.Assign):
            if isinstance(assign.target, nodes.Name) and _is_alias_value(assign.node, aliases):
                aliases.add(assign.target.name)
    return aliases


def _is_alias_value(value: nodes.Node, aliases: set[str]) -> bool:
    if isinstance(value, nodes.Getitem) and isinstance(value.arg, nodes.Slice):
        value = value.node
    return _is_name(value, aliases)


def _are_reads_ordered(body: list[nodes.Node], loop: nodes.For, aliases: set[str]) -> bool:
    """Return whether the messages are only sliced, or read singly: how, the rendering shows."""
    allowed = {id(loop.iter)}
    for node in body:
        for assign in _walk(node, nodes.Assign):
            if _is_alias_value(assign.node, aliases):
                allowed |= {id(name) for name in _names(assign.node)}
        for item in _walk(node, nodes.Getitem):
            if _is_name(item.node, aliases) and not isinstance(item.arg, nodes.Slice):
                allowed.add(id(item.node))
    return all(
        id(name) in allowed or name.ctx != "load" or name.name not in aliases
        for node in body
        for name in _names(node)
    )


def _is_loop_ordered(loop: nodes.For) -> bool:
    """Return whether the body reads of `loop` only what earlier messages decide; inner loops have a
    variable of their own."""
    allowed, found = set[int](), list[nodes.Name]()
    pending: list[nodes.Node] = list(loop.iter_child_nodes())
    while pending:
        node = pending.pop()
        if isinstance(node, nodes.For):
            pending.append(node.iter)
            continue
        if isinstance(node, nodes.Getattr) and node.attr in ORDERED_LOOP:
            allowed.add(id(node.node))
        if isinstance(node, nodes.Name) and node.name == "loop":
            found.append(node)
        pending += node.iter_child_nodes()
    return all(id(node) in allowed for node in found)


def _assigned_names(body: list[nodes.Node]) -> set[str]:
    """Return the names that a template sets, with those of its macros and namespaces."""
    found = {name.name for node in body for name in _names(node) if name.ctx != "load"}
    found |= {macro.name for node in body for macro in _walk(node, nodes.Macro)}
    return found | {reference.name for node in body for reference in _walk(node, nodes.NSRef)}


def _names(node: nodes.Node) -> Iterator[nodes.Name]:
    return _walk(node, nodes.Name)


def _walk(node: nodes.Node, kind: Any) -> Iterator[Any]:
    if isinstance(node, kind):
        yield node
    yield from node.find_all(kind)


def _is_name(node: nodes.Node, names: set[str]) -> bool:
    return isinstance(node, nodes.Name) and node.name in names
